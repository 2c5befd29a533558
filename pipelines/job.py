"""What a bulk-embedding job is asked to do."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError
from omai_ray.storage import Location
from omai_ray.telemetry.metrics import OTHER
from pipelines.chunk import Chunking
from pipelines.engine import Engine, actor_threads, build_engine
from pipelines.sinks.sink import SinkTarget
from pipelines.text_source import TextSource, column_source, template_source

OnLong = Literal["truncate", "error", "chunk"]
VectorDtype = Literal["float32", "float16"]

EMBEDDING_COLUMN = "embedding"
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """One corpus, one model, one output directory.

    source: a parquet file, a directory searched for them, or a glob; local, s3:// or gs://.
    within: a local directory that no file of the source may lie outside of, links resolved.
    output: a directory, local, s3:// or gs://; it mirrors the input's files and holds the run's
    own records.
    column: the text column; or template: several columns' values joined, see template_source.
    columns: those carried to the output; None carries all.
    model: the embedding model, already looked up.
    on_long: a text above the model's context is cut to it, dead-lettered, or cut into chunks.
    chunking: how long the chunks are, and what is written of them.
    row_id: add columns that say which file and row an output row is of.
    cache: a directory, on each node's own disk, of vectors for this and other runs.
    dtype: of the vectors that are written; they are computed in the model's own.
    max_dead: largest fraction of rows (or of files) that may be dead-lettered, 0 to 1.
    unit_rows: most rows of one unit of work; None is chosen from the corpus and then kept.
    actors: how many copies of the model; None is one for each CPU (or GPU) that Ray has free.
    max_actors: where it is given, `actors` is the least, and this the most, as there is work.
    leave_cpus, leave_gpus: what to leave free of that which Ray has free, for others.
    price_per_hour: what an actor costs, in whatever currency, for the report.
    address: a running Ray cluster; None uses the one this process is in, or starts a local one.
    overwrite: delete an earlier run's files in the output first.
    sink: a vector store to feed beside the parquet output.
    metrics_model: what metrics call the model, one of few names.
    engine_factory: builds the engine in the actor; must be importable there.
    """

    source: str
    within: Path | None = None
    output: str | os.PathLike[str]
    column: str | None = None
    template: str | None = None
    model: ModelSpec
    columns: tuple[str, ...] | None = None
    on_long: OnLong = "truncate"
    chunking: Chunking = field(default_factory=Chunking)
    row_id: bool = False
    cache: Path | None = None
    dtype: VectorDtype = "float32"
    max_dead: float = 0.01
    unit_rows: int | None = None
    actors: int | None = None
    max_actors: int | None = None
    leave_cpus: float = 0.0
    leave_gpus: float = 0.0
    price_per_hour: float | None = None
    address: str | None = None
    overwrite: bool = False
    sink: SinkTarget | None = None
    metrics_model: str = OTHER
    engine_factory: Callable[[ModelSpec], Engine] = build_engine

    def __post_init__(self) -> None:
        """Raise ConfigError, naming the argument, for a value that cannot be used."""
        if self.model.task != "embedding":
            raise ConfigError(f"model '{self.model.name}' does {self.model.task}, not embedding")
        if not 0 <= self.max_dead <= 1:
            raise ConfigError(f"max-dead is {self.max_dead}; it is a fraction from 0 to 1")
        if self.actors is not None and self.actors < 1:
            raise ConfigError(f"actors is {self.actors}; at least 1 is needed")
        if self.max_actors is not None and not 1 <= (self.actors or 0) <= self.max_actors:
            raise ConfigError(
                f"actors is {self.actors} to {self.max_actors}; the least is at least 1, and not "
                "above the most"
            )
        for name in ("leave_cpus", "leave_gpus", "price_per_hour"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name.replace('_', '-')} is {value}; at least 0 is needed")
        if self.unit_rows is not None and self.unit_rows < 1:
            raise ConfigError(f"unit-rows is {self.unit_rows}; at least 1 is needed")
        Location.parse(self.source)
        Location.parse(self.output)
        if (self.column is None) == (self.template is None):
            raise ConfigError("give the text by column or by template, one of the two")
        if self.template is not None:
            template_source(self.template)
        if self.on_long != "chunk" and self.chunking != Chunking():
            raise ConfigError(
                f"chunk options are given, and on-long is '{self.on_long}', not 'chunk'"
            )
        scheme = next(iter(self.cache.parts), "") if self.cache is not None else ""
        if scheme.endswith(":"):
            raise ConfigError(
                f"cache has the scheme '{scheme[:-1]}'; it is a directory on each node's own disk"
            )
        self._check_outside("cache", self.cache)
        self._check_outside("sink", self.sink.directory if self.sink is not None else None)

    def _check_outside(self, name: str, directory: Path | None) -> None:
        """Raise ConfigError where readers of the output would find a directory's files."""
        output = Location.parse(self.output)
        if directory is None or not output.is_local:
            return
        if directory.resolve().is_relative_to(output.local_path.resolve()):
            raise ConfigError(f"{name} {directory} lies inside the output {output}")

    @property
    def text(self) -> TextSource:
        """What makes a row's text."""
        if self.template is not None:
            return template_source(self.template)
        return column_source(str(self.column))

    @property
    def chunks(self) -> Chunking | None:
        """How texts are cut into chunks; None where they are not."""
        return self.chunking if self.on_long == "chunk" else None


def describe_output(job: EmbedJob) -> dict[str, Any]:
    """Return what, apart from the input's bytes and the model's, decides the output's rows.

    threads: sums are split by thread, so the last bits of a vector depend on their number.
    """
    return {
        "format_version": FORMAT_VERSION,
        "source": str(Location.parse(job.source)),
        "column": job.column,
        "template": job.template,
        "columns": None if job.columns is None else list(job.columns),
        "model": job.model.name,
        "threads": actor_threads(job.model),
        "on_long": job.on_long,
        "chunking": None if job.chunks is None else asdict(job.chunks),
        "row_id": job.row_id,
        "dtype": job.dtype,
    }


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, keys in order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
