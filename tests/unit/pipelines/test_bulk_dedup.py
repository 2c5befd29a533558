from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from omai_ray.errors import ConfigError
from pipelines import dedup
from pipelines.dedup import OnceEmbedder
from pipelines.errors import RunFailed
from pipelines.job import EmbedJob
from pipelines.report import Report
from pipelines.vector_cache import VectorCache
from tests.unit.pipelines.conftest import FakeEngine

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Tree = Callable[[Path], dict[str, bytes]]
Executors = Callable[..., Any]

REPEATED: list[str | None] = [
    None if i % 11 == 5 else "w poison" if i % 13 == 7 else f"word{i % 4} {i // 24}"
    for i in range(60)
]


class BatchEngine(FakeEngine):
    """Its vectors tell how many inputs they were computed with, as last bits can."""

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Put the number of inputs in the place of the last word."""
        vectors = super().embed_ids(inputs)
        vectors[:, 2] = len(inputs)
        return vectors


def test_an_identical_text_is_embedded_once_a_unit_and_written_for_each_row(
    write_corpus: Corpus,
    make_job: Job,
    run: Run,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Across slices too."""
    monkeypatch.setattr("pipelines.read.SLICE_ROWS", 3)
    texts = [f"word{i % 5}" for i in range(40)]
    write_corpus({"a.parquet": texts})
    job = make_job(unit_rows=20)
    report = run(job)
    assert sum(engine.batches) == 2 * 5
    assert (report.rows_written, report.rows_deduplicated, report.tokens) == (40, 30, 120)
    assert "30 identical" in report.to_text()
    vectors = pq.read_table(job.output)["embedding"].to_pylist()
    assert vectors == FakeEngine().embed_ids(engine.tokenize(texts)).tolist()


def test_repeated_chunks_are_embedded_once(
    write_corpus: Corpus, make_job: Job, run: Run, engine: FakeEngine
) -> None:
    """Such as a page's footer."""
    write_corpus({"a.parquet": ["same " * 60]})
    report = run(make_job(on_long="chunk"))
    assert (sum(engine.batches), report.output_rows, report.rows_deduplicated) == (1, 10, 9)


def test_a_run_that_is_stopped_resumes_to_the_same_bytes_whatever_was_the_same(
    write_corpus: Corpus,
    make_job: Job,
    run: Run,
    tree: Tree,
    local_executor: Executors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which inputs share a forward is the unit's own affair, even where vectors depend on it."""
    monkeypatch.setattr("pipelines.read.SLICE_ROWS", 4)
    write_corpus({"a.parquet": REPEATED})
    whole = make_job(output=tmp_path / "whole", unit_rows=15)
    run(whole, local_executor(engine=BatchEngine()))
    job = make_job(unit_rows=15)
    with pytest.raises(KeyboardInterrupt):
        run(job, local_executor(stop_after=2, engine=BatchEngine()))
    run(job, local_executor(engine=BatchEngine()))
    assert tree(Path(job.output)) == tree(Path(whole.output))


def test_an_input_that_fails_fails_for_each_of_its_rows_and_is_not_remembered() -> None:
    """Errors are by row, in the batch and beyond."""
    engine = FakeEngine()
    once = OnceEmbedder(engine)
    good, poison = engine.tokenize(["fine", "poison"])
    for _ in range(2):
        vectors, errors = once.embed([poison, good, poison])
        assert sorted(errors) == [0, 2]
        assert np.isnan(vectors[[0, 2]]).all()
        assert vectors[1].tolist() == engine.embed_ids([good])[0].tolist()
    assert once.reused == 1


def test_the_vectors_remembered_are_bounded_and_the_oldest_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A unit of many distinct texts costs no more memory."""
    monkeypatch.setattr(dedup, "MEMORY_BYTES", 4 * FakeEngine.dimension * 2)
    engine = FakeEngine()
    once = OnceEmbedder(engine)
    a, b, c = engine.tokenize(["a", "b", "c"])
    once.embed([a, b, c])
    engine.batches.clear()
    once.embed([b, c])
    assert engine.batches == []
    once.embed([a])
    assert engine.batches == [1]


def test_a_cache_spares_other_units_and_other_runs_what_is_known(
    write_corpus: Corpus, make_job: Job, run: Run, engine: FakeEngine, tmp_path: Path
) -> None:
    """Once for all of them; what fails, or is not finite, is tried again."""
    write_corpus({"a.parquet": [*REPEATED, "nan"]})
    cache = tmp_path / "cache"
    first = run(make_job(unit_rows=15, cache=cache))
    distinct = {text for text in REPEATED if text and "poison" not in text}
    assert first.rows_written - first.rows_deduplicated == len(distinct)
    again = make_job(output=tmp_path / "again", cache=cache)
    second = run(again)
    assert second.rows_deduplicated == second.rows_written == first.rows_written
    plain = make_job(output=tmp_path / "plain")
    run(plain)
    assert pq.read_table(again.output).equals(pq.read_table(plain.output))


def test_a_cache_is_of_one_model_alone(
    write_corpus: Corpus, make_job: Job, run: Run, local_executor: Executors, tmp_path: Path
) -> None:
    """Another fingerprint has vectors of its own."""

    class Other(FakeEngine):
        fingerprint = "e" * 64

    write_corpus({"a.parquet": ["x", "y"]})
    run(make_job(cache=tmp_path / "cache"))
    other = make_job(output=tmp_path / "other", cache=tmp_path / "cache")
    assert run(other, local_executor(engine=Other())).rows_deduplicated == 0


def test_actors_use_one_cache_at_once(tmp_path: Path) -> None:
    """Nobody fails, and nothing is lost."""
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            with VectorCache(tmp_path / "cache") as cache:
                for step in range(20):
                    shared = {f"{step}-{i}".encode(): vector(i) for i in range(20)}
                    own = {f"{number}-{step}-{i}".encode(): vector(i) for i in range(20)}
                    cache.put(shared | own)
                    assert len(cache.get(list(own))) == 20
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with VectorCache(tmp_path / "cache") as cache:
        keys = [
            f"{n}-{step}-{i}".encode() for n in range(4) for step in range(20) for i in range(20)
        ]
        keys += [f"{step}-{i}".encode() for step in range(20) for i in range(20)]
        found = cache.get([*keys, b"unknown"])
        assert set(found) == set(keys)
        assert all(found[key].tolist() == vector(int(key.split(b"-")[-1])).tolist() for key in keys)


def vector(number: int) -> npt.NDArray[np.float32]:
    """Return a vector that is recognised."""
    return np.array([number, number / 3], dtype=np.float32)


def test_a_cache_that_cannot_be_used_is_named(
    write_corpus: Corpus, make_job: Job, run: Run, tmp_path: Path
) -> None:
    """A file in its place before any work, a damaged one when it is read."""
    write_corpus({"a.parquet": ["x"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"cache {tmp_path / 'file'} is not a directory"):
        run(make_job(cache=tmp_path / "file"))
    damaged = tmp_path / "cache" / FakeEngine.fingerprint / "vectors.sqlite"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a database" * 1000)
    with pytest.raises(RunFailed, match=rf"cache {damaged}: .*not a database"):
        run(make_job(cache=tmp_path / "cache"))


def test_a_cache_holds_neither_texts_nor_ids(
    write_corpus: Corpus, make_job: Job, run: Run, tmp_path: Path
) -> None:
    """Hashes and vectors alone."""
    write_corpus({"a.parquet": ["secret"]})
    run(make_job(cache=tmp_path / "cache"))
    path = tmp_path / "cache" / FakeEngine.fingerprint / "vectors.sqlite"
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT length(key), length(vector) FROM vectors").fetchall()
    assert rows == [(16, 16)]
    assert b"secret" not in path.read_bytes()


def test_the_ledger_and_the_completion_record_count_output_rows(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """So that a file's rows can be checked against them, whatever the chunks."""
    write_corpus({"a.parquet": ["w " * 12, "w", None]})
    job = make_job(on_long="chunk")
    run(job)
    entry = json.loads((Path(job.output) / "_run" / "ledger.jsonl").read_text())
    assert (entry["rows"], entry["written"], entry["dead"], entry["output_rows"]) == (3, 2, 1, 3)
    assert pq.read_metadata(Path(job.output) / "a.parquet").num_rows == 3
    success = json.loads((Path(job.output) / "_SUCCESS.json").read_text())
    assert success["total_output_rows"] == 3


def test_a_cache_in_the_output_or_in_a_store_is_refused(make_job: Job, tmp_path: Path) -> None:
    """Before any work; what may be a secret is not repeated."""
    with pytest.raises(ConfigError, match=r"cache .* lies inside the output"):
        make_job(cache=tmp_path / "out" / "cache")
    with pytest.raises(ConfigError, match="cache has the scheme 's3'") as refused:
        make_job(cache=Path("s3://someone:hunter2@bucket/cache"))
    assert "hunter2" not in refused.value.message
