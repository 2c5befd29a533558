"""What a bulk-embedding job is asked to do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError
from omai_ray.storage import Location
from omai_ray.telemetry.metrics import OTHER
from pipelines.engine import Engine, actor_threads, build_engine

OnLong = Literal["truncate", "error"]
VectorDtype = Literal["float32", "float16"]

EMBEDDING_COLUMN = "embedding"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """One corpus, one model, one output directory.

    source: a parquet file, a directory searched for them, or a glob; local, s3:// or gs://.
    output: a directory, local, s3:// or gs://; it mirrors the input's files and holds the run's
    own records.
    column: the text column. columns: those carried to the output; None carries all.
    model: the embedding model, already looked up.
    on_long: a text above the model's context is cut to it, or dead-lettered.
    dtype: of the vectors that are written; they are computed in the model's own.
    max_dead: largest fraction of rows (or of files) that may be dead-lettered, 0 to 1.
    unit_rows: most rows of one unit of work; None is chosen from the corpus and then kept.
    actors: how many copies of the model; None is one for each CPU (or GPU) that Ray has free.
    address: a running Ray cluster; None uses the one this process is in, or starts a local one.
    overwrite: delete an earlier run's files in the output first.
    metrics_model: what metrics call the model, one of few names.
    engine_factory: builds the engine in the actor; must be importable there.
    """

    source: str
    output: str | os.PathLike[str]
    column: str
    model: ModelSpec
    columns: tuple[str, ...] | None = None
    on_long: OnLong = "truncate"
    dtype: VectorDtype = "float32"
    max_dead: float = 0.01
    unit_rows: int | None = None
    actors: int | None = None
    address: str | None = None
    overwrite: bool = False
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
        if self.unit_rows is not None and self.unit_rows < 1:
            raise ConfigError(f"unit-rows is {self.unit_rows}; at least 1 is needed")
        Location.parse(self.source)
        Location.parse(self.output)


def describe_output(job: EmbedJob) -> dict[str, Any]:
    """Return what, apart from the input's bytes and the model's, decides the output's rows.

    threads: sums are split by thread, so the last bits of a vector depend on their number.
    """
    return {
        "format_version": FORMAT_VERSION,
        "source": str(Location.parse(job.source)),
        "column": job.column,
        "columns": None if job.columns is None else list(job.columns),
        "model": job.model.name,
        "threads": actor_threads(job.model),
        "on_long": job.on_long,
        "dtype": job.dtype,
    }


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, keys in order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
