"""What a bulk-embedding job is asked to do."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError
from omai_ray.telemetry.metrics import OTHER
from pipelines.engine import Engine, actor_threads, build_engine

OnLong = Literal["truncate", "error"]
VectorDtype = Literal["float32", "float16"]

EMBEDDING_COLUMN = "embedding"
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """One corpus, one model, one output directory.

    source: a parquet file, a directory searched for them, or a glob.
    output: a directory; it mirrors the input's files and holds the run's own records.
    column: the text column. columns: those carried to the output; None carries all.
    model: the embedding model, already looked up.
    on_long: a text above the model's context is cut to it, or dead-lettered.
    dtype: of the vectors that are written; they are computed in the model's own.
    max_dead: largest fraction of rows (or of files) that may be dead-lettered, 0 to 1.
    unit_rows: most rows of one unit of work; None is chosen from the corpus and then kept.
    actors: how many copies of the model; None is one for each CPU (or GPU) that Ray has free.
    max_actors: where it is given, `actors` is the least, and this the most, as there is work.
    leave_cpus, leave_gpus: what to leave free of that which Ray has free, for others.
    price_per_hour: what an actor costs, in whatever currency, for the report.
    address: a running Ray cluster; None uses the one this process is in, or starts a local one.
    overwrite: delete an earlier run's files in the output first.
    metrics_model: what metrics call the model, one of few names.
    engine_factory: builds the engine in the actor; must be importable there.
    """

    source: str
    output: Path
    column: str
    model: ModelSpec
    columns: tuple[str, ...] | None = None
    on_long: OnLong = "truncate"
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


def describe_output(job: EmbedJob) -> dict[str, Any]:
    """Return what, apart from the input's bytes and the model's, decides the output's rows.

    threads: sums are split by thread, so the last bits of a vector depend on their number.
    """
    return {
        "format_version": FORMAT_VERSION,
        "source": os.path.abspath(job.source),  # noqa: PTH100 - a glob is not a Path
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
