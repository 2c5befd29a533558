from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.engines.embedding.engine import EmbeddingEngine
from omai_ray.errors import ConfigError
from pipelines import output_rows
from pipelines.chunk import Chunking, pool_mean
from pipelines.errors import OutputMismatch
from pipelines.job import EmbedJob
from pipelines.read import Slice
from pipelines.report import Report
from pipelines.rows import Embedded
from tests.checkpoints import save_embedding_checkpoint

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Dead = Callable[[Path], list[tuple[Any, ...]]]
Executors = Callable[..., Any]

LONG = "漢字 the quick 👩‍👩‍👧 brown fox jumps over the lazy dog " * 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingEngine:
    """Return a small random model that scales vectors to length 1."""
    directory = save_embedding_checkpoint(tmp_path_factory.mktemp("small"))
    spec = ModelSpec(name="m", task="embedding", source=str(directory), dtype="float32")
    return EmbeddingEngine(spec)


def vectors_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """Return a table's vectors as a matrix."""
    return np.stack(table["embedding"].combine_chunks().to_numpy(zero_copy_only=False))


def test_a_long_text_is_a_row_for_each_chunk_with_the_columns_repeated(
    write_corpus: Corpus, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """Numbers and characters tell them apart; the counts are of the input's rows."""
    write_corpus({"a.parquet": ["a bb ccc dd e", None, "short"]})
    job = make_job(on_long="chunk", chunking=Chunking(tokens=5, overlap=1))
    report = run(job)
    table = pq.read_table(Path(job.output) / "a.parquet")
    assert table.drop(["text", "embedding"]).to_pylist() == [
        {"id": 0, "chunk": 0, "chunk_start": 0, "chunk_end": 8},
        {"id": 0, "chunk": 1, "chunk_start": 5, "chunk_end": 13},
        {"id": 2, "chunk": 0, "chunk_start": 0, "chunk_end": 5},
    ]
    assert table["text"].to_pylist() == ["a bb ccc dd e", "a bb ccc dd e", "short"]
    assert [vector[1] for vector in table["embedding"].to_pylist()] == [5, 5, 3]
    assert dead_letters(Path(job.output)) == [("a.parquet", 1, 1, "null")]
    assert (report.rows_read, report.rows_written, report.rows_dead) == (3, 2, 1)
    assert (report.output_rows, report.total_output_rows, report.rows_truncated) == (3, 3, 0)
    assert "2 in 3 chunks" in report.to_text()


def test_a_row_with_one_bad_chunk_is_dead_with_all_of_them(
    write_corpus: Corpus, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """Half a text's vectors would pass for the whole."""
    write_corpus({"a.parquet": ["one two nan four", "poison two three", "three four five"]})
    for pool in (None, "mean"):
        job = make_job(
            on_long="chunk", chunking=Chunking(tokens=4, pool=pool), overwrite=pool is not None
        )
        report = run(job)
        assert dead_letters(Path(job.output)) == [
            ("a.parquet", 0, 1, "not_finite"),
            ("a.parquet", 1, 1, "engine_failed"),
        ]
        assert set(pq.read_table(Path(job.output) / "a.parquet")["id"].to_pylist()) == {2}
        assert (report.rows_written, report.rows_dead, report.tokens) == (1, 2, 7)


def test_chunks_of_a_real_model_are_their_texts_tokens_and_a_short_text_is_as_ever(
    write_corpus: Corpus, make_job: Job, run: Run, local_executor: Executors, small: EmbeddingEngine
) -> None:
    """A chunk's vector is that of its window's ids; its characters are those of its tokens."""
    write_corpus({"a.parquet": [LONG, "the lazy dog"]})
    job = make_job(on_long="chunk", chunking=Chunking(tokens=12, overlap=3), row_id=True)
    run(job, local_executor(engine=small))
    table = pq.read_table(Path(job.output) / "a.parquet")
    rows = table.drop(["embedding"]).to_pylist()
    windows = small.tokenizer.windows([LONG], 12, 3)[0]
    assert [(row["chunk_start"], row["chunk_end"]) for row in rows[:-1]] == [
        (window.start, window.end) for window in windows
    ]
    assert [row["source_row"] for row in rows] == [0] * len(windows) + [1]
    expected = small.embed_ids([*(w.ids for w in windows), *small.tokenize(["the lazy dog"])])
    np.testing.assert_allclose(vectors_of(table), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pooled_chunks_are_one_vector_of_length_1_weighted_by_tokens(
    write_corpus: Corpus,
    make_job: Job,
    run: Run,
    local_executor: Executors,
    small: EmbeddingEngine,
    dtype: str,
) -> None:
    """One row a text; that of one chunk has the vector that it has without chunks."""
    write_corpus({"a.parquet": [LONG, "the lazy dog", None, LONG[:50]]})
    job = make_job(on_long="chunk", chunking=Chunking(tokens=12, pool="mean"), dtype=dtype)
    report = run(job, local_executor(engine=small))
    table = pq.read_table(Path(job.output) / "a.parquet")
    windows = small.tokenizer.windows([LONG], 12, 0)[0]
    of_chunks = small.embed_ids([window.ids for window in windows])
    weights = [len(window.ids) - 2 for window in windows]
    mean = np.average(of_chunks, axis=0, weights=weights)
    exact = 2e-6 if dtype == "float32" else 1e-3
    got = vectors_of(table).astype(np.float32)
    np.testing.assert_allclose(got[0], mean / np.linalg.norm(mean), atol=exact)
    np.testing.assert_allclose(
        got[1], small.embed_ids(small.tokenize(["the lazy dog"]))[0], atol=exact
    )
    assert table.column_names == ["id", "text", "chunks", "embedding"]
    assert table["id"].to_pylist() == [0, 1, 3]
    assert table["chunks"].to_pylist()[:2] == [len(windows), 1]
    assert report.output_rows == report.rows_written == 3


def test_a_mean_is_weighted_and_scaled_only_where_the_model_scales() -> None:
    """A row of one chunk keeps its vector to the bit."""
    vectors = np.array([[2, 0], [0, 4], [3, 3]], dtype=np.float32)
    weights = np.array([3, 1, 5], dtype=np.float32)
    firsts = np.array([0, 2])
    plain = pool_mean(vectors, weights, firsts, unit_length=False)
    assert plain.tolist() == [[1.5, 1], [3, 3]]
    scaled = pool_mean(vectors, weights, firsts, unit_length=True)
    np.testing.assert_allclose(scaled, [[1.5 / 3.25**0.5, 1 / 3.25**0.5], [3, 3]], rtol=1e-6)


def test_rows_that_are_repeated_come_in_portions_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A text of many chunks is never in memory as often as it has chunks."""
    monkeypatch.setattr(output_rows, "PORTION_BYTES", 3000)
    large = pa.array(["w" * 9000, "", ""]).dictionary_encode()  # which is not repeated
    batch = pa.RecordBatch.from_pydict({"text": ["x" * 1000, "y", "z" * 100], "large": large})
    counts = [20, 3, 200]
    rows = np.repeat(np.arange(3), counts)
    chunk = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    vectors = np.arange(2 * len(rows), dtype=np.float32).reshape(-1, 2)
    embedded = Embedded(Slice(0, batch), rows, vectors, [], 0, 0.0, 3, {"chunk": chunk})
    made = [pa.field("chunk", pa.int32())]
    schema = output_rows.output_schema(batch.schema, None, made, 2, "float32", {})
    portions = list(output_rows.output_batches(embedded, schema, made, "a.parquet"))
    texts = [pa.array(portion["text"].to_pylist()).nbytes for portion in portions]
    assert 10 < len(portions) < 30
    assert max(texts) < 2 * 3000
    whole = pa.Table.from_batches(portions)
    assert whole["text"].to_pylist() == [batch["text"][row].as_py() for row in rows]
    assert whole["chunk"].to_pylist() == chunk.tolist()
    assert vectors_of(whole).tolist() == vectors.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "chunk-tokens is 0"),
        ({"overlap": -1}, "chunk-overlap is -1"),
        ({"tokens": 5, "overlap": 5}, r"chunk-overlap is 5; it must be below chunk-tokens \(5\)"),
    ],
)
def test_chunks_that_cannot_be_cut_are_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    """When the job is made."""
    with pytest.raises(ConfigError, match=message):
        Chunking(**options)


@pytest.mark.parametrize(
    ("chunking", "message"),
    [
        (Chunking(tokens=9), "chunk-tokens is 9; the model accepts 8"),
        (Chunking(tokens=2), "chunks of 2 tokens have 0 of the text, as 2 are the prompt"),
        (Chunking(overlap=6), r"chunks of 8 tokens have 6 .* above chunk-overlap \(6\)"),
    ],
)
def test_chunks_that_the_model_cannot_take_are_refused_before_any_work(
    write_corpus: Corpus, make_job: Job, run: Run, chunking: Chunking, message: str
) -> None:
    """What they may be is known once it is loaded."""
    write_corpus({"a.parquet": ["x"]})
    job = make_job(on_long="chunk", chunking=chunking)
    with pytest.raises(ConfigError, match=message):
        run(job)
    assert not (Path(job.output) / "_run" / "manifest.json").exists()


def test_chunk_options_without_chunks_are_refused(make_job: Job) -> None:
    """They would mean nothing."""
    with pytest.raises(ConfigError, match="on-long is 'truncate', not 'chunk'"):
        make_job(chunking=Chunking(tokens=4))


def test_a_run_goes_on_with_its_own_chunks_only(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """Other windows are other rows."""
    write_corpus({"a.parquet": ["x"]})
    run(make_job(on_long="chunk", chunking=Chunking(tokens=4)))
    with pytest.raises(OutputMismatch, match=r"chunking was .*'tokens': 4"):
        run(make_job(on_long="chunk", chunking=Chunking(tokens=5)))


def test_an_input_column_that_chunks_would_write_over_is_refused(
    tmp_path: Path, make_job: Job, run: Run
) -> None:
    """Named before any work."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["x"], "chunk_end": [1]}), tmp_path / "in" / "a.parquet")
    with pytest.raises(ConfigError, match="has a column 'chunk_end' already"):
        run(make_job(on_long="chunk"))
    run(make_job(on_long="chunk", chunking=Chunking(pool="mean")))
