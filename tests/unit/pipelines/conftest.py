"""A corpus, an engine that is instant and exact, and an executor without Ray."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.text.windows import Window, cut
from pipelines.engine import Engine, EngineFacts, describe_engine
from pipelines.job import EmbedJob
from pipelines.plan import Unit
from pipelines.progress import Silent
from pipelines.report import Report
from pipelines.run import Tick, run_job
from pipelines.unit import UnitResult, UnitSettings, process_unit

DIMENSION, CONTEXT = 4, 8
BEGIN, END, POISON, NAN = 1, 2, 3, 4


class WordTokenizer:
    """One id a word, a begin and an end around them."""

    tokens_around = 2

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids by word."""
        special = {"poison": POISON, "nan": NAN}
        return [
            [BEGIN, *(special.get(word) or 10 + sum(word.encode()) for word in text.split()), END]
            for text in texts
        ]

    def windows(self, texts: Sequence[str], size: int, overlap: int) -> list[list[Window]]:
        """Cut between words."""
        return [self._cut(text, size, overlap) for text in texts]

    def _cut(self, text: str, size: int, overlap: int) -> list[Window]:
        spans = [found.span() for found in re.finditer(r"\S+", text)]
        (ids,) = self.encode([text])
        return [
            Window(
                array("i", [BEGIN, *ids[first + 1 : end + 1], END]),
                spans[first][0],
                spans[end - 1][1],
            )
            for first, end in cut(len(spans), spans.__getitem__, size - 2, overlap)
        ]

    def shorten(self, ids: list[int]) -> list[int]:
        """Cut to the context, the end kept."""
        return ids if len(ids) <= CONTEXT else [*ids[: CONTEXT - 1], END]


class FakeEngine:
    """A vector is a function of its ids alone; it fails on `poison`, gives NaN for `nan`."""

    context = CONTEXT
    dimension = DIMENSION
    int8_cosine = ""
    unit_length = False
    fingerprint = "f" * 64

    def __init__(self, spec: ModelSpec | None = None) -> None:
        self.tokenizer = WordTokenizer()
        self.provenance: dict[str, Any] = {"pooling": "none"}
        self.batches: list[int] = []
        self.tokens = self.computed_tokens = 0

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids, never cut."""
        return self.tokenizer.encode(texts)

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return float32 [N, 4]: sum, length, last word, largest id."""
        self.batches.append(len(inputs))
        self.tokens += sum(map(len, inputs))
        self.computed_tokens += max(map(len, inputs)) * len(inputs)
        if any(POISON in ids for ids in inputs):
            raise RuntimeError("poisoned")
        assert all(len(ids) <= self.context for ids in inputs)
        vectors = [
            [float("nan") if NAN in ids else sum(ids), len(ids), ids[-2], max(ids)]
            for ids in inputs
        ]
        return np.array(vectors, dtype=np.float32)


class LocalExecutor:
    """Does units one after the other in this process; stops like Ctrl-C after some."""

    actors = 1

    def __init__(self, engine: Engine, stop_after: int | None = None) -> None:
        self.engine, self.stop_after = engine, stop_after
        self.done: list[str] = []

    def describe(self) -> EngineFacts:
        """Return the fake's facts."""
        return describe_engine(self.engine)

    def run(
        self, units: Sequence[Unit], settings: UnitSettings, tick: Tick
    ) -> Generator[UnitResult, None, None]:
        """Do each unit here."""
        for unit in units:
            if len(self.done) == self.stop_after:
                raise KeyboardInterrupt
            self.done.append(unit.output)
            yield process_unit(unit, settings, self.engine, tick)


@pytest.fixture
def engine() -> FakeEngine:
    """Make a fresh engine."""
    return FakeEngine()


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes {name: texts} as parquet files with ids."""

    def write(files: dict[str, list[str | None]], row_group_size: int = 1000) -> Path:
        root = tmp_path / "in"
        for name, texts in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            ids = pa.array(range(len(texts)), pa.int64())
            table = pa.table({"id": ids, "text": pa.array(texts, pa.string())})
            pq.write_table(table, path, row_group_size=row_group_size)
        return root

    return write


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., EmbedJob]:
    """Return a function that makes a job from in to out."""

    def make(**changes: Any) -> EmbedJob:
        values: dict[str, Any] = {
            "source": str(tmp_path / "in"),
            "output": tmp_path / "out",
            "column": "text",
            "model": ModelSpec(name="fake", task="embedding", source="nowhere"),
            "max_dead": 1.0,
        }
        return EmbedJob(**(values | changes))

    return make


@pytest.fixture
def run(engine: FakeEngine) -> Callable[..., Report]:
    """Return a function that runs a job without Ray."""

    def run_it(job: EmbedJob, executor: LocalExecutor | None = None) -> Report:
        chosen = executor or LocalExecutor(engine)
        return run_job(job, lambda _: nullcontext(chosen), Silent())

    return run_it


@pytest.fixture
def local_executor(engine: FakeEngine) -> Callable[..., LocalExecutor]:
    """Return a function that makes an executor, to look at, to stop, or of another engine."""

    def make(stop_after: int | None = None, engine: Engine = engine) -> LocalExecutor:
        return LocalExecutor(engine, stop_after)

    return make


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads every data and dead-letter file of an output."""
    return lambda output: {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*.parquet"))
    }


@pytest.fixture
def dead_letters() -> Callable[[Path], list[tuple[Any, ...]]]:
    """Return a function that lists (file, row, rows, reason) of an output's dead letters."""

    def read(output: Path) -> list[tuple[Any, ...]]:
        paths = sorted((output / "_dead_letters").rglob("*.parquet"))
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        return [(row["file"], row["row"], row["rows"], row["reason"]) for row in rows]

    return read
