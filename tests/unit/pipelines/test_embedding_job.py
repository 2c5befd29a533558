from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.errors import CheckpointError, ConfigError
from omai_ray.storage import Location
from pipelines.chunk import Chunking
from pipelines.errors import OutputInUse, RunFailed
from pipelines.job import EmbedJob
from pipelines.progress import Snapshot
from pipelines.report import Report
from pipelines.run_embedding_job import JobActor, Tally, Task, is_final, join, measure, tally

Write = Callable[..., Path]
MODEL = ModelSpec(name="fake", task="embedding", source="nowhere")


def task_of(source: Path, **changes: Any) -> Task:
    """Return a task that reads a place."""
    values: dict[str, Any] = {
        "source": Location.parse(source),
        "output": Location.parse(source.parent / "out"),
        "within": None,
        "model": MODEL,
        "how": {"column": "text"},
        "metrics_model": "fake",
        "actors": 1,
    }
    return Task(**(values | changes))


def test_a_request_says_what_the_pipeline_is_asked(tmp_path: Path) -> None:
    """Each of its fields; dead letters do not fail the pipeline."""
    how = {
        "template": "{title}: {body}",
        "columns": ["id"],
        "on_long": "chunk",
        "chunks": {"tokens": 8, "overlap": 2, "pool": "mean"},
        "dtype": "float16",
    }
    job = task_of(tmp_path / "in", how=how).job()
    assert ("{title}: {body}", None, ("id",)) == (job.template, job.column, job.columns)
    assert ("chunk", Chunking(8, 2, "mean"), "float16") == (job.on_long, job.chunking, job.dtype)
    assert (1.0, 1, "fake") == (job.max_dead, job.actors, job.metrics_model)


def test_an_input_is_measured_and_its_columns_are_checked(write_corpus: Write) -> None:
    """Before anything is embedded."""
    root = write_corpus({"a.parquet": ["x"] * 5, "b/c.parquet": ["y"] * 7})
    size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
    assert (12, size) == measure(task_of(root))
    with pytest.raises(ConfigError, match="no column 'words'"):
        measure(task_of(root, how={"column": "words"}))
    with pytest.raises(ConfigError, match="names no column"):
        measure(task_of(root, how={"template": "none"}))


def test_a_link_in_a_directory_leads_nowhere_else(write_corpus: Write, tmp_path: Path) -> None:
    """To a file, or to a directory; one that stays within is read."""
    root = write_corpus({"a.parquet": ["x"]})
    (root / "b.parquet").symlink_to(root / "a.parquet")
    assert 2 == measure(task_of(root, within=root))[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "a.parquet").rename(elsewhere / "a.parquet")
    (root / "b.parquet").unlink()
    for name, to in (("c.parquet", elsewhere / "a.parquet"), ("d", elsewhere)):
        (root / name).symlink_to(to)
        with pytest.raises(ConfigError, match="a link to a place that jobs may not use"):
            measure(task_of(root, within=root))
        (root / name).unlink()


def test_units_are_joined_in_the_inputs_order(
    write_corpus: Write,
    make_job: Callable[..., EmbedJob],
    run: Callable[..., Report],
    tmp_path: Path,
) -> None:
    """One file of rows, with how they were made in its footer, and one of dead letters."""
    texts = [None if n % 6 == 0 else f"text {n}" for n in range(20)]
    source = write_corpus({"a.parquet": texts}) / "a.parquet"
    output = tmp_path / "out"
    run(make_job(source=str(source), output=output, unit_rows=3))
    assert 7 == len(list(output.glob("*.parquet")))
    place = Location.parse(output)
    data, dead = Location.parse(tmp_path / "data"), Location.parse(tmp_path / "dead")
    sizes = join(place, data, dead)
    assert (data.local_path.stat().st_size, dead.local_path.stat().st_size) == sizes
    rows = pq.read_table(data.local_path)
    assert [n for n in range(20) if n % 6] == rows["id"].to_pylist()
    parts = sorted(output.glob("*.parquet"))
    vectors = [v for part in parts for v in pq.read_table(part)["embedding"].to_pylist()]
    assert vectors == rows["embedding"].to_pylist()
    assert pq.read_schema(parts[0]).metadata == rows.schema.metadata
    letters = pq.read_table(dead.local_path).to_pylist()
    assert [(n, "null") for n in range(0, 20, 6)] == [(r["row"], r["reason"]) for r in letters]
    done = tally(place)
    assert (16, 4) == (done.written, done.dead)
    assert done.tokens > 0


def test_what_would_be_empty_is_not_made(
    write_corpus: Write,
    make_job: Callable[..., EmbedJob],
    run: Callable[..., Report],
    tmp_path: Path,
) -> None:
    """Neither rows without any, nor dead letters; an output that is not there has neither."""
    data, dead = Location.parse(tmp_path / "data"), Location.parse(tmp_path / "dead")
    assert (None, None) == join(Location.parse(tmp_path / "none"), data, dead)
    assert Tally() == tally(Location.parse(tmp_path / "none"))
    source = write_corpus({"a.parquet": [None]}) / "a.parquet"
    run(make_job(source=str(source)))
    rows, letters = join(Location.parse(tmp_path / "out"), data, dead)
    assert rows is None
    assert letters
    assert not data.exists()


def test_progress_begins_where_an_earlier_run_ended() -> None:
    """The pipeline counts what is left; the job's owner what there is."""
    actor = JobActor()
    actor._before = Tally(100, 2, 1000)
    actor.update(Snapshot(rows_done=10, rows_total=50, tokens=70, dead=1, elapsed_s=1.0))
    assert Tally(109, 3, 1070) == actor.progress()


def test_a_job_fails_by_what_is_asked_not_by_what_may_pass() -> None:
    """An output that an earlier attempt still holds, a model, a worker."""
    assert is_final(ConfigError("no column"))
    for error in (OutputInUse("held"), CheckpointError("no weights"), RunFailed("died")):
        assert not is_final(error)
