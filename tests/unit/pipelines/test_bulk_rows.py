from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bisection import bisect
from pipelines.errors import RunFailed
from pipelines.job import EmbedJob
from pipelines.report import Report
from pipelines.unit import ahead
from tests.unit.pipelines.conftest import FakeEngine

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Dead = Callable[[Path], list[tuple[Any, ...]]]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bisecting_fails_the_items_at_fault_and_no_other(bad: list[bool]) -> None:
    """Every item gets exactly one result or one error, in order."""

    def embed(items: Sequence[tuple[int, bool]]) -> list[int]:
        if any(fails for _, fails in items):
            raise ValueError
        return [item for item, _ in items]

    got: list[int | None] = []
    for first, count, result in bisect(embed, list(enumerate(bad))):
        assert first == len(got)
        got += [None] * count if isinstance(result, Exception) else result
    assert got == [None if fails else item for item, fails in enumerate(bad)]


@pytest.mark.fault(27)
def test_good_rows_are_written_in_order_and_bad_ones_dead_lettered_with_reason_and_row(
    write_corpus: Corpus, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """The counts balance."""
    write_corpus({"a.parquet": ["one", None, "two two", "", " \n ", "a poison b", "nan", "three"]})
    job = make_job()
    report = run(job)
    table = pq.read_table(Path(job.output) / "a.parquet")
    assert table["id"].to_pylist() == [0, 2, 7]
    assert dead_letters(Path(job.output)) == [
        ("a.parquet", 1, 1, "null"),
        ("a.parquet", 3, 1, "empty"),
        ("a.parquet", 4, 1, "empty"),
        ("a.parquet", 5, 1, "engine_failed"),
        ("a.parquet", 6, 1, "not_finite"),
    ]
    assert (report.rows_read, report.rows_written, report.rows_dead) == (8, 3, 5)
    assert report.dead_reasons == {"empty": 2, "engine_failed": 1, "not_finite": 1, "null": 1}


@pytest.mark.fault(27)
def test_text_that_is_not_utf8_is_dead_lettered(
    tmp_path: Path, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """Parquet readers hand it on unchecked."""
    (tmp_path / "in").mkdir()
    offsets = pa.py_buffer(np.array([0, 2, 4, 6], dtype=np.int32))
    text = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"ab\xff\xfecd"))
    pq.write_table(pa.table({"text": text}), tmp_path / "in" / "a.parquet")
    job = make_job()
    run(job)
    assert dead_letters(Path(job.output)) == [("a.parquet", 1, 1, "invalid_utf8")]
    assert pq.read_table(Path(job.output) / "a.parquet")["text"].to_pylist() == ["ab", "cd"]


def test_texts_are_tokenised_in_groups_that_are_not_long(
    write_corpus: Corpus,
    make_job: Job,
    run: Run,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many rows a slice has; a text that alone is longer goes alone."""
    monkeypatch.setattr("pipelines.rows.GROUP_CHARACTERS", 10)
    groups: list[list[str]] = []
    tokenize = engine.tokenize

    def noted(texts: Sequence[str]) -> list[list[int]]:
        groups.append(list(texts))
        return tokenize(texts)

    monkeypatch.setattr(engine, "tokenize", noted)
    write_corpus({"a.parquet": ["aaaa", "bbbb", "cccc", "d" * 30, "e", None, "f"]})
    report = run(make_job())
    assert groups == [["aaaa", "bbbb"], ["cccc"], ["d" * 30], ["e", "f"]]
    assert report.rows_written == 6


def test_a_long_text_is_cut_to_the_context_and_counted(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """The closing special token is kept, as the engine's own shortening does."""
    write_corpus({"a.parquet": ["w " * 20, "w"]})
    job = make_job()
    report = run(job)
    vectors = pq.read_table(Path(job.output) / "a.parquet")["embedding"].to_pylist()
    assert [vector[1] for vector in vectors] == [8, 3]
    assert (report.rows_truncated, report.rows_written, report.tokens) == (1, 2, 11)


@pytest.mark.fault(27)
def test_a_long_text_is_dead_lettered_where_the_job_says_so(
    write_corpus: Corpus, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """Not cut in silence, were it 5 MB long."""
    write_corpus({"a.parquet": ["w " * 20, "w", "w " * 2_500_000]})
    job = make_job(on_long="error")
    report = run(job)
    assert dead_letters(Path(job.output)) == [
        ("a.parquet", 0, 1, "too_long"),
        ("a.parquet", 2, 1, "too_long"),
    ]
    assert report.rows_truncated == 0


@pytest.mark.fault(27)
def test_a_corrupt_page_costs_its_row_group_and_no_other(
    write_corpus: Corpus, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """The rows that cannot be read are one dead letter with their number."""
    root = write_corpus({"a.parquet": [f"word{i}" for i in range(30)]}, row_group_size=10)
    path = root / "a.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    job = make_job()
    report = run(job)
    assert dead_letters(Path(job.output)) == [("a.parquet", 10, 10, "unreadable")]
    ids = pq.read_table(Path(job.output) / "a.parquet")["id"].to_pylist()
    assert ids == [*range(10), *range(20, 30)]
    assert (report.rows_read, report.rows_written, report.rows_dead) == (30, 20, 10)


@pytest.mark.fault(27)
def test_a_corrupt_footer_is_a_dead_letter_and_counts_as_a_file(
    write_corpus: Corpus, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """Nobody can say how many rows it has, so its share of the files stands for them."""
    root = write_corpus({"a.parquet": ["x"], "b.parquet": ["y"]})
    (root / "b.parquet").write_bytes(b"PAR1 not really")
    job = make_job(max_dead=0.4)
    report = run(job)
    assert dead_letters(Path(job.output)) == [("b.parquet", None, None, "unreadable_footer")]
    assert (report.rows_written, report.files_dead, report.dead_fraction) == (1, 1, 0.5)
    assert not report.ok
    assert not (Path(job.output) / "_SUCCESS.json").exists()


@pytest.mark.parametrize(("dtype", "kind"), [("float32", pa.float32()), ("float16", pa.float16())])
def test_the_embedding_column_is_a_fixed_size_list_in_the_dtype_asked_for(
    write_corpus: Corpus, make_job: Job, run: Run, dtype: str, kind: pa.DataType
) -> None:
    """Input columns come first, unchanged; provenance is in the footer."""
    write_corpus({"a.parquet": ["one", "two"]})
    job = make_job(dtype=dtype)
    run(job)
    schema = pq.read_schema(Path(job.output) / "a.parquet")
    assert schema.names == ["id", "text", "embedding"]
    assert schema.field("embedding").type == pa.list_(pa.field("element", kind), 4)
    assert schema.metadata[b"omai.model"] == b"fake"
    assert schema.metadata[b"omai.embedding_fingerprint"] == b"f" * 64
    metadata = pq.read_metadata(Path(job.output) / "a.parquet")
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_only_the_columns_asked_for_are_carried_in_that_order(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """The text is read, and need not be written."""
    write_corpus({"a.parquet": ["one", "two"]})
    job = make_job(columns=("id",))
    run(job)
    assert pq.read_schema(Path(job.output) / "a.parquet").names == ["id", "embedding"]


def test_vectors_stand_beside_their_own_rows_whatever_the_slices(
    write_corpus: Corpus, make_job: Job, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order survives units, slices, row groups and dead rows."""
    monkeypatch.setattr("pipelines.read.SLICE_ROWS", 3)
    texts: list[str | None] = [None if i % 7 == 3 else "w " * (i % 5 + 1) for i in range(50)]
    write_corpus({"a.parquet": texts}, row_group_size=17)
    job = make_job(unit_rows=8)
    report = run(job)
    table = pq.read_table(Path(job.output))
    expected = [(i, i % 5 + 3) for i, text in enumerate(texts) if text is not None]
    got = zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True)
    assert [(row, int(vector[1])) for row, vector in got] == expected
    assert report.rows_written + report.rows_dead == 50


def test_an_empty_file_and_one_of_dead_rows_have_outputs_without_rows(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """The output mirrors the input's files one to one."""
    write_corpus({"a.parquet": [], "b.parquet": [None]})
    job = make_job()
    run(job)
    for name in ("a.parquet", "b.parquet"):
        table = pq.read_table(Path(job.output) / name)
        assert (table.num_rows, table.column_names) == (0, ["id", "text", "embedding"])


def test_counts_that_do_not_balance_fail_the_job_and_commit_nothing(
    write_corpus: Corpus, make_job: Job, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost row is never passed over in silence."""
    write_corpus({"a.parquet": ["x", None]})
    monkeypatch.setattr("pipelines.rows._letters", lambda *_: [])
    job = make_job()
    with pytest.raises(RunFailed, match="2 rows were read, 1 written and 0 dead-lettered"):
        run(job)
    assert not (Path(job.output) / "a.parquet").exists()


def test_an_input_that_changes_after_planning_fails_the_job(
    write_corpus: Corpus, make_job: Job, run: Run, local_executor: Callable[..., Any]
) -> None:
    """Its units would be a mix of two files."""
    root = write_corpus({"a.parquet": ["x"]})
    executor = local_executor()
    describe = executor.describe

    def replace_then_describe() -> Any:
        write_corpus({"a.parquet": ["x", "y", "z"]})
        return describe()

    executor.describe = replace_then_describe
    with pytest.raises(RunFailed, match="was changed while the job ran"):
        run(make_job(source=str(root)), executor)


def test_what_is_made_ahead_comes_in_order_and_fails_in_its_place() -> None:
    """Items before the failure are not lost."""

    def items() -> Any:
        yield from range(5)
        raise ValueError("sixth")

    made = ahead(items(), 2)
    assert [next(made) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="sixth"):
        next(made)
