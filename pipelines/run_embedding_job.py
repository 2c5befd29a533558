"""A bulk-embedding job that was asked for over HTTP: looked at, run in an actor, put together.

Who may read and write where is decided by whoever makes the `Task`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omai_ray.catalog import ModelSpec
from omai_ray.errors import CheckpointError, ConfigError, OMAiError
from omai_ray.storage import Location
from pipelines.chunk import Chunking
from pipelines.errors import OutputInUse
from pipelines.job import EmbedJob
from pipelines.run_ledger import Entry
from pipelines.run_record import SCRATCH, RunRecord


@dataclass(frozen=True)
class Task:
    """What is to be embedded, and by what.

    source, output: locations. within: see EmbedJob. how: column or template, columns, on_long,
    chunks and dtype, as a request has them. metrics_model: what metrics call the model. actors:
    copies of the model.
    """

    source: Location
    output: Location
    within: Path | None
    model: ModelSpec
    how: dict[str, Any]
    metrics_model: str
    actors: int

    def job(self) -> EmbedJob:
        """Return the pipeline's job. Raises ConfigError for what cannot be done."""
        how = dict(self.how)
        columns, chunks = how.pop("columns", None), how.pop("chunks", None)
        return EmbedJob(
            source=self.source.uri,
            within=self.within,
            output=self.output.local_path if self.output.is_local else self.output.uri,
            model=self.model,
            metrics_model=self.metrics_model,
            actors=self.actors,
            max_dead=1.0,  # how many are dead is for the job's owner to judge
            columns=None if columns is None else tuple(columns),
            chunking=Chunking(**chunks) if chunks else Chunking(),
            **how,
        )


@dataclass(frozen=True)
class Tally:
    """What the ledger of a job's output has: rows written and dead-lettered, tokens embedded."""

    written: int = 0
    dead: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, record: RunRecord) -> Tally:
        """Return it."""
        entries = record.entries.values()
        return cls(
            sum(entry.written for entry in entries),
            sum(entry.dead for entry in entries),
            sum(entry.tokens for entry in entries),
        )


def is_final(error: OMAiError) -> bool:
    """Whether a job fails by this whenever it is run."""
    passing = isinstance(error, OutputInUse | CheckpointError)
    return isinstance(error, ConfigError) and not passing


def measure(task: Task) -> tuple[int, int]:
    """Return the rows and bytes of a task's input. Raises ConfigError, StorageError."""
    from pipelines.run import read_input

    found = read_input(task.job())
    return sum(footer.rows for footer in found.footers), sum(file.size for file in found.files)


class JobActor:
    """Runs one task; tells meanwhile how far it is. It ends with whoever started it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tally = self._before = Tally()

    def run(self, task: Task) -> None:
        """Embed what the output does not have yet. Raises OMAiError."""
        from pipelines.embed_corpus import embed_corpus

        job = task.job()
        self._before = self._tally = tally(task.output)
        embed_corpus(job, self)

    def progress(self) -> Tally:
        """Return what is done so far, uncommitted rows included."""
        with self._lock:
            return self._tally

    def stage(self, text: str) -> None:
        """Ignore it: the job's status says enough."""

    def update(self, snapshot: Any) -> None:
        """Take the pipeline's numbers, which are of this run."""
        before, dead = self._before, snapshot.dead
        with self._lock:
            self._tally = Tally(
                before.written + snapshot.rows_done - dead,
                before.dead + dead,
                before.tokens + snapshot.tokens,
            )


def tally(output: Location) -> Tally:
    """Return what an output has, which need not exist."""
    return Tally.of(RunRecord(output, mend=False))


def join(output: Location, data: Location, dead: Location) -> tuple[int | None, int | None]:
    """Write an output's rows, in the input's order, and dead letters as one file each.

    Returns their bytes; None for one that would be empty, which is not made.
    """
    record = RunRecord(output, mend=False)
    entries = sorted(record.entries.values(), key=lambda entry: (entry.source, entry.first_row))
    with _scratch(output) as scratch:
        return (
            _join_rows(output, [entry for entry in entries if entry.written], data, scratch),
            _join_dead(output, [entry for entry in entries if entry.dead], dead, scratch),
        )


def _join_rows(output: Location, entries: list[Entry], to: Location, scratch: Path) -> int | None:
    from pipelines.commit import UnitWriter
    from pipelines.source import open_parquet

    writer: UnitWriter | None = None
    for entry in entries:
        with open_parquet(output.child(entry.output)) as parquet:
            if writer is None:
                writer = UnitWriter(to.parent, to.name, scratch, parquet.schema_arrow)
            for batch in parquet.iter_batches():
                writer.write(batch.replace_schema_metadata(writer.schema.metadata))
    return None if writer is None else writer.commit(entries[0].source, [])[0]


def _join_dead(output: Location, entries: list[Entry], to: Location, scratch: Path) -> int | None:
    import pyarrow.parquet as pq

    from pipelines.commit import DEAD_LETTER_SCHEMA, DEAD_LETTERS
    from pipelines.source import open_parquet

    if not entries:
        return None
    temporary = scratch / "dead.parquet"
    with pq.ParquetWriter(temporary, DEAD_LETTER_SCHEMA, compression="zstd") as writer:
        for entry in entries:
            with open_parquet(output.child(f"{DEAD_LETTERS}/{entry.output}")) as parquet:
                for batch in parquet.iter_batches():
                    writer.write_batch(batch)
    size = temporary.stat().st_size
    to.write_from(temporary)
    return size


@contextmanager
def _scratch(output: Location) -> Iterator[Path]:
    """Give a directory, beside a local output's own: it goes with the output."""
    root = None
    if output.is_local:
        root = output.local_path / SCRATCH
        root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix="join-") as directory:
        yield Path(directory)
