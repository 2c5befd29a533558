from __future__ import annotations

import datetime
import json
import pickle
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omai_ray.errors import ConfigError
from omai_ray.storage import Location
from pipelines.chunk import Chunking
from pipelines.commit import commit_dead_letters
from pipelines.errors import RunFailed
from pipelines.job import EmbedJob
from pipelines.read import DeadLetter
from pipelines.report import Report
from pipelines.run_lease import Lease
from pipelines.run_ledger import Entry
from pipelines.sinks import feed, rows
from pipelines.sinks.rows import CommittedUnit, json_rows, row_schema
from pipelines.sinks.sink import SinkTarget, parse_target
from tests.databases import Postgres, run_postgres
from tests.programs import require_module

from .stores import (
    LanceStore,
    PgvectorStore,
    QdrantServerStore,
    QdrantStandIn,
    QdrantStore,
    Store,
    direction,
    run_qdrant,
)

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Executors = Callable[..., Any]
Fill = Callable[..., Report]

FILES: dict[str, list[str | None]] = {
    "a.parquet": ["w0", None, "w2", "poison", "w4", "w5", "w6"],
    "d=1/b.parquet": ["x y z", " ", "two words"],
}
ALIVE = {
    ("a.parquet", 0, 0): "w0",
    ("a.parquet", 2, 0): "w2",
    ("a.parquet", 4, 0): "w4",
    ("a.parquet", 5, 0): "w5",
    ("a.parquet", 6, 0): "w6",
    ("d=1/b.parquet", 0, 0): "x y z",
    ("d=1/b.parquet", 2, 0): "two words",
}


@pytest.fixture(scope="session")
def pgvector_server() -> Iterator[Postgres]:
    """Run a PostgreSQL server that has pgvector."""
    require_module("pgvector", extra="pgvector")
    with run_postgres(pgvector=True) as server:
        yield server


@pytest.fixture
def qdrant_server() -> Iterator[QdrantStandIn]:
    """Run a stand-in for Qdrant's server."""
    require_module("qdrant_client", extra="qdrant")
    with run_qdrant() as server:
        yield server


@pytest.fixture(params=["lance", "qdrant", "qdrant-server", "pgvector"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Give a place for a table, of each kind in turn."""
    if request.param == "lance":
        require_module("lance", extra="lance")
        return LanceStore(tmp_path)
    if request.param == "qdrant":
        require_module("qdrant_client", extra="qdrant")
        return QdrantStore(tmp_path)
    if request.param == "qdrant-server":
        return QdrantServerStore(request.getfixturevalue("qdrant_server"))
    return PgvectorStore(request.getfixturevalue("pgvector_server"), f"t_{uuid.uuid4().hex}")


@pytest.fixture
def fill(store: Store, make_job: Job, run: Run, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Return a function that runs the job with the store as its sink."""
    monkeypatch.setattr(feed, "RETRY_AFTER_S", (0.0,))

    def fill_it(executor: Any = None, **changes: Any) -> Report:
        values = {"unit_rows": 3, "sink": parse_target(store.uri)} | changes
        return run(make_job(**values), executor)

    return fill_it


KILLED_AFTER_A_UNIT = """
import os, pathlib, pickle, signal, sys
from contextlib import nullcontext
from pipelines.progress import Silent
from pipelines.run import run_job
from pipelines.sinks.feed import FedLedger
from tests.unit.pipelines.conftest import FakeEngine, LocalExecutor

note = FedLedger.note

def note_once(ledger, entry):
    if any(fed.key for fed in ledger.entries.values()):
        os.kill(os.getpid(), signal.SIGKILL)
    note(ledger, entry)

FedLedger.note = note_once
job = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
run_job(job, lambda _: nullcontext(LocalExecutor(FakeEngine())), Silent())
"""


def texts(store: Store) -> dict[Any, str]:
    """Return the rows' texts."""
    return {key: stored.columns["text"] for key, stored in store.rows().items()}


def test_each_row_is_in_the_sink_once_with_its_columns_and_the_files_vector(
    store: Store, write_corpus: Corpus, fill: Fill, tmp_path: Path
) -> None:
    """Rows are known by their number in the input's file, dead ones counted."""
    write_corpus(FILES)
    report = fill()
    assert (report.rows_written, report.sink_rows) == (7, 7)
    assert texts(store) == ALIVE
    table = pq.read_table(tmp_path / "out", columns=["text", "id", "embedding"]).to_pylist()
    written = {row["text"]: row for row in table}
    for (_, number, _), stored in store.rows().items():
        row = written[stored.columns["text"]]
        assert stored.columns["id"] == row["id"] == number
        np.testing.assert_allclose(direction(stored.vector), direction(row["embedding"]), rtol=1e-5)


def test_feeding_again_changes_nothing(store: Store, write_corpus: Corpus, fill: Fill) -> None:
    """The same command finds all of it fed; with the ledger lost, the same rows are put again."""
    write_corpus(FILES)
    ledger = Path(fill().output) / "_run" / "sinks"
    before = store.rows()
    assert fill().sink_rows == 0
    shutil.rmtree(ledger)
    assert fill().sink_rows == 7
    after = store.rows()
    assert texts(store) == ALIVE
    for key, stored in before.items():
        assert (after[key].id, after[key].unit) == (stored.id, stored.unit)
        np.testing.assert_allclose(after[key].vector, stored.vector, rtol=1e-6)


def test_a_sink_can_be_added_to_a_finished_run(
    store: Store, write_corpus: Corpus, fill: Fill, local_executor: Executors
) -> None:
    """It gets what was committed before, and nothing is embedded again."""
    write_corpus(FILES)
    fill(sink=None)
    executor = local_executor()
    report = fill(executor)
    assert (executor.done, report.sink_rows) == ([], 7)
    assert texts(store) == ALIVE


def test_a_changed_file_replaces_its_rows_and_a_file_that_is_gone_takes_them_along(
    store: Store, write_corpus: Corpus, fill: Fill, tmp_path: Path
) -> None:
    """Fewer rows than before, another cut into units: nothing of the old ones stays."""
    write_corpus(FILES)
    fill()
    write_corpus({"a.parquet": ["new", None]})
    fill()
    assert texts(store) == {("a.parquet", 0, 0): "new"} | {
        key: text for key, text in ALIVE.items() if key[0] != "a.parquet"
    }
    (tmp_path / "in" / "d=1" / "b.parquet").unlink()
    fill()
    assert texts(store) == {("a.parquet", 0, 0): "new"}


def test_each_chunk_of_a_row_is_in_the_sink_once(
    store: Store, write_corpus: Corpus, fill: Fill, tmp_path: Path
) -> None:
    """Chunks are known by their row's number and their own."""
    long = " ".join(f"w{number}" for number in range(20))
    write_corpus({"a.parquet": ["one", None, long, "nan", "two"]})
    report = fill(on_long="chunk", chunking=Chunking(tokens=8, overlap=1))
    written = {
        (row["id"], row["chunk"]): row for row in pq.read_table(tmp_path / "out").to_pylist()
    }
    assert report.sink_rows == len(written) > 3
    stored = store.rows()
    assert {(row, chunk) for _, row, chunk in stored} == set(written)
    for (_, number, chunk), found in stored.items():
        row = written[number, chunk]
        assert found.columns["chunk_start"] == row["chunk_start"]
        np.testing.assert_allclose(direction(found.vector), direction(row["embedding"]), rtol=1e-5)


def test_a_unit_that_is_to_be_done_again_is_fed_once_it_is(
    store: Store, write_corpus: Corpus, fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the file that is there until then, nor from one that is not."""
    write_corpus({"a.parquet": ["old", "w1"], "b.parquet": ["w2"]})
    fill(sink=None)
    write_corpus({"a.parquet": ["new", None]})
    (tmp_path / "out" / "b.parquet").unlink()
    batches, fed = CommittedUnit.batches, []

    def note(unit: CommittedUnit) -> Iterator[pa.RecordBatch]:
        fed.append(unit.id)
        return batches(unit)

    monkeypatch.setattr(CommittedUnit, "batches", note)
    fill()
    assert texts(store) == {("a.parquet", 0, 0): "new", ("b.parquet", 0, 0): "w2"}
    assert len(fed) == 2


def test_a_file_that_can_no_longer_be_read_leaves_the_sink(
    store: Store, write_corpus: Corpus, fill: Fill
) -> None:
    """As it leaves the output."""
    root = write_corpus(FILES)
    fill()
    (root / "d=1" / "b.parquet").write_bytes(b"PAR1 not really")
    fill()
    assert {file for file, _, _ in store.rows()} == {"a.parquet"}


def test_overwriting_leaves_no_row_of_the_run_before(
    store: Store, write_corpus: Corpus, fill: Fill
) -> None:
    """What the sink was fed is known beyond --overwrite."""
    write_corpus(FILES)
    fill()
    write_corpus({"a.parquet": ["other"]})
    fill(overwrite=True, unit_rows=2)
    assert texts(store) == {("a.parquet", 0, 0): "other"} | {
        key: text for key, text in ALIVE.items() if key[0] != "a.parquet"
    }


def test_a_run_killed_between_the_sink_and_its_ledger_leaves_each_row_once(
    store: Store, write_corpus: Corpus, fill: Fill, make_job: Job, tmp_path: Path
) -> None:
    """The unit is put again, over itself."""
    write_corpus(FILES)
    job = make_job(unit_rows=3, sink=parse_target(store.uri))
    pickled = tmp_path / "job"
    pickled.write_bytes(pickle.dumps(job))
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_A_UNIT, pickled],
        cwd=Path(feed.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    fed = {stored.unit for stored in store.rows().values()}
    assert len(fed) == 2
    ledger = feed.FedLedger(Location.parse(job.output), parse_target(store.uri))
    assert sum(bool(entry.key) for entry in ledger.entries.values()) == 1
    fill()
    assert texts(store) == ALIVE


def test_a_ledger_that_cannot_be_written_ends_the_run(
    store: Store, write_corpus: Corpus, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not noted is fed again."""
    write_corpus(FILES)

    def fail(ledger: feed.FedLedger, entry: Entry) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feed.FedLedger, "note", fail)
        with pytest.raises(RunFailed, match=r"No space left on device.*the same command resumes"):
            fill()
    assert fill().sink_rows == 7
    assert texts(store) == ALIVE


def test_rows_that_were_put_and_not_noted_go_with_their_input(
    store: Store, write_corpus: Corpus, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run is about to put is noted before."""
    root = write_corpus(FILES)

    def fail(ledger: feed.FedLedger, entry: Entry) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feed.FedLedger, "note", fail)
        with pytest.raises(RunFailed, match="No space left on device"):
            fill()
    assert {file for file, _, _ in store.rows()} == {"a.parquet"}
    (root / "a.parquet").unlink()
    fill()
    assert {file for file, _, _ in store.rows()} == {"d=1/b.parquet"}


def test_rows_that_failed_before_an_overwrite_and_not_after_it_are_fed(
    store: Store, write_corpus: Corpus, fill: Fill, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit is the same, its file is not."""
    write_corpus({"a.parquet": ["w0", "w1"]})
    embed_ids, ids_of_w1 = engine.embed_ids, engine.tokenize(["w1"])[0]

    def fail(inputs: Any) -> Any:
        if ids_of_w1 in inputs:
            raise RuntimeError("out of memory")
        return embed_ids(inputs)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "embed_ids", fail)
        assert fill().sink_rows == 1
    assert fill(overwrite=True).sink_rows == 2
    assert texts(store) == {("a.parquet", 0, 0): "w0", ("a.parquet", 1, 0): "w1"}


def test_a_sink_that_fails_ends_the_run_which_then_resumes(
    store: Store,
    write_corpus: Corpus,
    fill: Fill,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """After one more attempt; the output is not marked complete, and what is fed stays."""
    write_corpus(FILES)
    batches, calls = rows.CommittedUnit.batches, []

    def lose_connection(unit: CommittedUnit) -> Iterator[pa.RecordBatch]:
        calls.append(unit.id)
        if len(set(calls)) == 2:
            raise ConnectionResetError(104, "Connection reset by peer")
        yield from batches(unit)

    with monkeypatch.context() as patch:
        patch.setattr(rows.CommittedUnit, "batches", lose_connection)
        with pytest.raises(RunFailed, match=r"sink .* cannot be fed: .*Connection reset by peer"):
            fill()
    assert len(calls) == 3
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    assert 0 < fill().sink_rows < 7
    assert texts(store) == ALIVE


def test_a_table_that_was_dropped_is_filled_anew(
    store: Store, write_corpus: Corpus, fill: Fill
) -> None:
    """The ledger alone is not believed."""
    write_corpus(FILES)
    fill()
    store.drop()
    assert fill().sink_rows == 7
    assert texts(store) == ALIVE


def test_a_table_of_other_dimensions_is_refused_before_any_work(
    store: Store,
    write_corpus: Corpus,
    fill: Fill,
    local_executor: Executors,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Naming both."""
    write_corpus(FILES)
    fill()
    executor = local_executor()
    executor.engine.dimension = 6
    with pytest.raises(ConfigError, match=f"{store.wide}.*6"):
        fill(executor, output=tmp_path / "other")
    assert executor.done == []


def test_a_table_of_another_models_vectors_is_refused(
    store: Store, write_corpus: Corpus, fill: Fill, local_executor: Executors, tmp_path: Path
) -> None:
    """Their distances would mean nothing."""
    write_corpus(FILES)
    fill()
    executor = local_executor()
    executor.engine.fingerprint = "0" * 64
    with pytest.raises(ConfigError, match=r"fingerprint ffffffffffff.*000000000000"):
        fill(executor, output=tmp_path / "other")
    assert executor.done == []


def test_a_store_that_is_away_is_reported_before_any_work(
    store: Store, write_corpus: Corpus, fill: Fill, local_executor: Executors
) -> None:
    """In one line, which holds no password."""
    write_corpus(FILES)
    executor = local_executor()
    with pytest.raises(ConfigError, match=r"^sink .* cannot be used: ") as caught:
        fill(executor, sink=parse_target(store.unreachable))
    assert executor.done == []
    assert "\n" not in caught.value.message
    assert "hidden" not in caught.value.message


def test_two_corpora_share_a_table(
    store: Store, write_corpus: Corpus, fill: Fill, make_job: Job, tmp_path: Path
) -> None:
    """Files of one name are not the same rows, and go with their own corpus alone."""
    write_corpus({"a.parquet": ["one"]})
    fill()
    (tmp_path / "in").rename(tmp_path / "first")
    write_corpus({"a.parquet": ["two"], "b.parquet": ["three"]})
    (tmp_path / "in").rename(tmp_path / "second")
    second = {"source": str(tmp_path / "second"), "output": tmp_path / "other"}
    fill(**second)
    found = store.read()
    assert sorted(row["columns"]["text"] for row in found) == ["one", "three", "two"]
    (tmp_path / "second" / "a.parquet").unlink()
    fill(**second)
    assert sorted(row["columns"]["text"] for row in store.read()) == ["one", "three"]


def test_half_precision_vectors_stay_so(store: Store, write_corpus: Corpus, fill: Fill) -> None:
    """In a column of their own kind, within half precision."""
    write_corpus({"a.parquet": ["x", "y z"]})
    fill(dtype="float16")
    exact = store.rows()["a.parquet", 1, 0].vector
    # of the engine: sum, length, last word and largest id of [1, 131, 132, 2]
    np.testing.assert_allclose(direction(exact), direction([266, 4, 132, 132]), rtol=1e-3)


def test_plain_columns_of_every_kind_go_along(store: Store, fill: Fill, tmp_path: Path) -> None:
    """Text that is no UTF-8 or has NULs, infinities, dates, files that differ in their columns."""
    root = tmp_path / "in"
    root.mkdir()
    day = datetime.date(2026, 1, 31)
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"b\xff"], pa.binary()).buffers())
    first = pa.table(
        {
            "text": ["x"],
            "kind": pa.array(["red"]).dictionary_encode(),
            "broken": broken,
            "nul": ["a\0b"],
            "day": [day],
            "score": [float("inf")],
            "number": pa.array([2], pa.int32()),
            "nested": [[1, 2]],
            "raw": [b"x"],
        }
    )
    second = pa.table({"text": ["y"], "number": pa.array([2**40], pa.int64())})
    pq.write_table(first, root / "a.parquet")
    pq.write_table(second, root / "b.parquet")
    fill()
    columns = {key[0]: stored.columns for key, stored in store.rows().items()}
    found = columns["a.parquet"]
    assert (found["kind"], found["broken"], found["number"]) == (
        "red",
        "b\N{REPLACEMENT CHARACTER}",
        2,
    )
    assert str(found["day"]) == "2026-01-31"
    assert found["score"] in (None, float("inf"))
    assert found["nul"] in ("a\0b", "a\N{REPLACEMENT CHARACTER}b")
    assert not {"nested", "raw"} & set(found)
    assert (columns["b.parquet"]["number"], columns["b.parquet"]["kind"]) == (2**40, None)


def test_a_file_without_rows_is_fed(store: Store, write_corpus: Corpus, fill: Fill) -> None:
    """To no effect, and noted."""
    write_corpus({"a.parquet": [], "b.parquet": ["x"], "c.parquet": [None]})
    assert fill().sink_rows == 1
    assert texts(store) == {("b.parquet", 0, 0): "x"}


def test_a_servers_collection_has_an_index_of_units(
    qdrant_server: QdrantStandIn, write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """By which a unit's rows are deleted."""
    write_corpus(FILES)
    run(make_job(sink=parse_target(QdrantServerStore(qdrant_server).uri)))
    assert qdrant_server.indexed == ["omai_unit"]


def write_unit(
    output: Path,
    values: dict[str, Any],
    source_rows: str,
    dead: Sequence[DeadLetter] = (),
    chunking: dict[str, Any] | None = None,
) -> CommittedUnit:
    """Write a data file as a job does, and return it as a sink reads it."""
    vector = pa.FixedSizeListArray.from_arrays(
        pa.array(np.arange(len(values["text"]) * 2, dtype=np.float32)), 2
    )
    metadata = {
        "omai.source_file": "a.parquet",
        "omai.source_rows": source_rows,
        "omai.chunking": json.dumps(chunking),
    }
    table = pa.table(values).append_column("embedding", vector).replace_schema_metadata(metadata)
    pq.write_table(table, output / "u.parquet")
    commit_dead_letters(Location.parse(output), "u.parquet", output, "a.parquet", dead)
    schema = row_schema([table.schema], "f" * 64)
    entry = Entry("u.parquet", "k" * 64)
    return CommittedUnit(Location.parse(output), entry, "corpus", schema)


def test_chunks_of_a_row_are_numbered_and_rows_after_them_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across batches, and beside dead rows."""
    monkeypatch.setattr(rows, "BATCH_ROWS", 2)
    values = {
        "text": ["a", "a", "a", "b", "d"],
        "chunk": pa.array([0, 1, 2, 0, 0], pa.int32()),
    }
    unit = write_unit(tmp_path, values, "10:14", [DeadLetter(12, 1, "empty", "")], {"pool": None})
    found = pa.Table.from_batches(unit.batches())
    assert found["omai_row"].to_pylist() == [10, 10, 10, 11, 13]
    assert found["omai_chunk"].to_pylist() == [0, 1, 2, 0, 0]
    assert len(set(found["omai_id"].to_pylist())) == 5


@pytest.mark.parametrize("chunking", [None, {"pool": "mean"}])
def test_a_column_that_is_called_chunk_is_the_inputs_own_where_a_row_has_one_vector(
    tmp_path: Path, chunking: dict[str, Any] | None
) -> None:
    """Its values number nothing."""
    values = {"text": ["a", "b"], "chunk": ["x", "y"]}
    unit = write_unit(tmp_path, values, "0:2", chunking=chunking)
    found = pa.Table.from_batches(unit.batches())
    assert found["omai_row"].to_pylist() == [0, 1]
    assert found["chunk"].to_pylist() == ["x", "y"]


@pytest.mark.parametrize("source_rows", ["0:1", "0:3"])
def test_rows_that_do_not_add_up_are_not_fed(tmp_path: Path, source_rows: str) -> None:
    """A row under another's number would be worse than none."""
    unit = write_unit(tmp_path, {"text": ["a", "b"]}, source_rows)
    with pytest.raises(RunFailed, match="this is a defect"):
        list(unit.batches())


def test_a_batch_is_bounded_in_bytes_unless_one_row_is_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts would make requests that a server refuses."""
    monkeypatch.setattr(rows, "BATCH_BYTES", 2000)
    values = {"text": [*["short"] * 20, "long" * 1000, *["short"] * 3]}
    unit = write_unit(tmp_path, values, "0:24")
    batches = list(unit.batches())
    assert [row for batch in batches for row in batch["omai_row"].to_pylist()] == [*range(24)]
    assert [batch.num_rows for batch in batches if batch.nbytes > 2000] == [1]
    assert max(batch.num_rows for batch in batches) > 1


class Recorder:
    """A sink that notes what it is asked to."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def exists(self) -> bool:
        """Return that it is there."""
        return True

    def prepare(self, schema: pa.Schema) -> None:
        """Take any rows."""

    def put(self, unit: str, version: str, batches: Iterator[pa.RecordBatch]) -> None:
        """Note it."""
        self.asked.append("put")

    def remove(self, unit: str) -> None:
        """Note it."""
        self.asked.append("remove")

    def close(self) -> None:
        """Nothing is held."""


class Lost(Lease):
    """The lease of a run that overslept."""

    def check(self) -> None:
        """Raise."""
        raise RunFailed("no longer this run's")


def test_a_run_that_lost_its_output_feeds_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another may feed other rows by now."""
    sink, target = Recorder(), SinkTarget("qdrant", "uri", "shown", "docs")
    monkeypatch.setattr(feed, "connect", lambda _: sink)
    schema = pa.schema([])
    with feed.feed_sink(target, Location.parse(tmp_path), "in", schema, Lost()) as feeder:
        feeder.add(Entry("a.parquet", "key", bytes=1))
        with pytest.raises(RunFailed, match="no longer this run's"):
            feeder.finish()
    assert sink.asked == []


def test_columns_that_no_table_can_have_together_are_refused() -> None:
    """Before any work, with what to do."""
    vector = pa.field("embedding", pa.list_(pa.float32(), 2))
    texts, dates = pa.field("when", pa.string()), pa.field("when", pa.date32())
    with pytest.raises(ConfigError, match=r"when.*--columns"):
        row_schema([pa.schema([texts, vector]), pa.schema([dates, vector])], "f")
    taken = pa.schema([pa.field("omai_row", pa.int32()), vector])
    with pytest.raises(ConfigError, match=r"'omai_row'.*--columns"):
        row_schema([taken], "f")


def test_payloads_have_no_vector_and_nothing_that_json_lacks() -> None:
    """Decimals are text: a float would lose digits."""
    batch = pa.RecordBatch.from_pydict(
        {
            "omai_id": ["i"],
            "when": pa.array([datetime.datetime(2026, 1, 31, 12, 30)], pa.timestamp("ms")),
            "price": pa.array([12345], pa.int64()).cast(pa.decimal128(21, 2)),
            "nan": [float("nan")],
            "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        }
    )
    assert json_rows(batch, without=["omai_id"]) == [
        {"when": "2026-01-31T12:30:00", "price": "12345.00", "nan": None}
    ]


def test_a_time_that_python_does_not_have_is_in_a_payload_as_text_or_null() -> None:
    """Its neighbours are as ever."""
    days = pa.array([1, 5_000_000, 100_000_000], pa.int32()).view(pa.date32())
    seconds = pa.array([1, 10**12, 2**62], pa.int64()).view(pa.timestamp("s"))
    found = json_rows(pa.RecordBatch.from_pydict({"day": days, "at": seconds}))
    assert found == [
        {"day": "1970-01-02", "at": "1970-01-01T00:00:01"},
        {"day": "15659-07-15", "at": None},
        {"day": None, "at": None},
    ]


@pytest.mark.parametrize(
    ("uri", "kind", "name", "directory"),
    [
        ("lance:///data/docs", "lance", "docs", "/data/docs"),
        ("/data/docs.lance", "lance", "docs.lance", "/data/docs.lance"),
        ("qdrant:///data/store/docs", "qdrant", "docs", "/data/store"),
        ("qdrant+http://host:6333/docs", "qdrant", "docs", None),
        (
            "postgresql://me@host/db?table=public.docs&sslmode=require",
            "pgvector",
            "public.docs",
            None,
        ),
    ],
)
def test_a_sinks_uri_says_what_it_is_and_where(
    uri: str, kind: str, name: str, directory: str | None
) -> None:
    """Files or a server."""
    target = parse_target(uri)
    where = None if target.directory is None else str(target.directory)
    assert (target.kind, target.name, where) == (kind, name, directory)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("docs", "docs is of no known kind"),
        ("mysql://u:hidden@host/db", r"mysql://… is of no known kind"),
        ("lance:///docs", "names no table"),
        ("lance://docs/table", "must have no host"),
        ("qdrant+http:///a/docs", "must have a host"),
        ("qdrant+http://host:6333/", "names no table or collection"),
        ("qdrant+http://host:port/docs", "cannot be read"),
        ("postgresql://u:hidden/x@host/db?table=t", "cannot be read"),
        ("//u:hidden@host/db", "host/db is of no known kind"),
        ("postgresql://u:hidden@host/db", "names no database and table"),
        ("postgresql://u:hidden@host/?table=docs", "names no database and table"),
    ],
)
def test_a_uri_of_no_known_form_is_refused_with_the_forms(uri: str, message: str) -> None:
    """And without a password that it may hold."""
    with pytest.raises(ConfigError, match=f"{message}.*lance:///DIRECTORY/TABLE") as caught:
        parse_target(uri)
    assert "hidden" not in caught.value.message


def test_a_password_is_in_no_message_report_or_ledgers_name(tmp_path: Path) -> None:
    """Another password is the same sink."""
    first, second = (
        parse_target(f"postgresql://u:{word}@host/db?table=t") for word in ("hidden", "secret")
    )
    assert "hidden" not in repr(first)
    assert first.shown == "postgresql://u@host/db?table=t"
    feed.FedLedger(Location.parse(tmp_path), first).note(Entry("a", "key"))
    ledger = feed.FedLedger(Location.parse(tmp_path), second)
    assert ledger.has(Entry("a", "key"))
    assert not ledger.has(Entry("a", "key", sha256="other"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs lance.*pip install 'omai-ray\[lance\]'"):
        parse_target("lance:///data/docs")


def test_a_store_inside_the_output_is_refused(make_job: Job, tmp_path: Path) -> None:
    """Readers of the output would find its files."""
    with pytest.raises(ConfigError, match="lies inside the output"):
        make_job(sink=parse_target(f"{tmp_path}/out/docs.lance"))
    assert isinstance(make_job(sink=parse_target(f"{tmp_path}/docs.lance")).sink, SinkTarget)


def test_a_damaged_ledger_of_a_sink_is_refused_and_a_torn_line_cut(tmp_path: Path) -> None:
    """As the run's own."""
    target = parse_target("lance:///data/docs")
    feed.FedLedger(Location.parse(tmp_path), target).note(Entry("a", "key"))
    (path,) = (tmp_path / "_run" / "sinks").glob("*/ledger.jsonl")
    path.write_bytes(path.read_bytes() + b'{"output": "b", "k')
    assert feed.FedLedger(Location.parse(tmp_path), target).entries == {"a": Entry("a", "key")}
    path.write_bytes(b"nonsense\n")
    with pytest.raises(ConfigError, match="is damaged"):
        feed.FedLedger(Location.parse(tmp_path), target)
