from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import WorkerCrashedError

from deployments.embedding_jobs import DIRECTORY, RayJobRunner
from omai_ray.catalog import ModelSpec
from omai_ray.embedding_jobs.queue import Done
from omai_ray.embedding_jobs.runner import Joined, Measured, Refused
from omai_ray.errors import Overloaded
from omai_ray.files import Contents
from omai_ray.files.names import file_id
from omai_ray.settings import EmbeddingJobSettings, Settings
from omai_ray.storage import Location
from omai_ray.store import EmbeddingJob
from pipelines.progress import Silent
from pipelines.run import run_job
from pipelines.run_embedding_job import join, measure, tally
from tests.s3_server import s3_server
from tests.unit.pipelines.conftest import FakeEngine, LocalExecutor

MODEL = ModelSpec(name="emb", task="embedding", source="nowhere")
TEXTS = [None if n == 3 else f"text {n}" for n in range(600)]  # more than one unit
OUTPUT, ERROR = file_id(1.0), file_id(2.0)


def parquet(texts: list[str | None]) -> bytes:
    """Return a file of texts and their numbers."""
    sink = io.BytesIO()
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    pq.write_table(table, sink)
    return sink.getvalue()


def job_of(**changes: Any) -> EmbeddingJob:
    """Return a job."""
    values: dict[str, Any] = dict.fromkeys(EmbeddingJob.__dataclass_fields__)
    values |= {
        "id": "embjob_1",
        "account_id": "acct_1",
        "model": "emb",
        "task": {"column": "text", "on_long": "truncate", "dtype": "float32"},
        "status": "in_progress",
    }
    return EmbeddingJob(**(values | changes))


@pytest.fixture(params=["directory", "bucket"])
def contents(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Contents]:
    """Return where files are kept, of either kind."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with s3_server("vault") if request.param == "bucket" else nullcontext() as server:
        place = str(tmp_path / "files")
        if server is not None:
            place = f"s3://vault/kept?endpoint_override={server.endpoint}&max_attempts=2"
        opened = Contents.at(place)
        yield opened
        opened.close()


def runner_of(contents: Contents, *locations: str) -> RayJobRunner:
    """Return a runner that allows some locations."""
    settings = Settings(
        models=(MODEL,), embedding_jobs=EmbeddingJobSettings(locations=tuple(locations))
    )
    return RayJobRunner(lambda: settings, contents, here)


async def here(work: Callable[..., Any], *values: Any) -> Any:
    """Do some work in this process."""
    return await asyncio.to_thread(work, *values)


async def test_an_uploads_rows_become_files_and_its_directory_goes(contents: Contents) -> None:
    """In a directory or a bucket; the pipeline is run here as an actor runs it."""
    runner, upload = runner_of(contents), file_id(0.0)
    contents.location(upload).write_bytes(content := parquet(TEXTS))
    job = job_of(input_file_id=upload)
    assert Measured(600, len(content)) == await runner.measure(job)
    engine = FakeEngine()
    run_job(runner._task(job).job(), lambda _: nullcontext(LocalExecutor(engine)), Silent())
    assert [job.id] == await runner.leftovers()
    done = await runner.done(job)
    assert Done(599, 1, done.tokens) == done
    joined = await runner.join(job, OUTPUT, ERROR)
    output, error = contents.location(OUTPUT), contents.location(ERROR)
    assert Joined(len(output.read_bytes()), len(error.read_bytes())) == joined
    rows = pq.read_table(io.BytesIO(output.read_bytes()))
    assert [n for n in range(600) if n != 3] == rows["id"].to_pylist()
    assert "embedding" in rows.column_names
    await runner.discard(job.id)
    assert [] == await runner.leftovers()
    assert [] == contents.location(DIRECTORY).list()
    assert {upload, OUTPUT, ERROR} == {stat.name for stat in contents.root.list()}


async def test_an_owner_is_told_what_is_wrong_and_not_where_files_are(
    contents: Contents,
) -> None:
    """No such column; no parquet at all."""
    runner, upload = runner_of(contents), file_id(0.0)
    contents.location(upload).write_bytes(parquet(["a"]))
    job = job_of(input_file_id=upload, task={"column": "words"})
    with pytest.raises(Refused, match="no column 'words'") as refused:
        await runner.measure(job)
    assert str(contents.root) not in str(refused.value)
    assert "endpoint_override" not in str(refused.value)
    contents.location(upload).write_bytes(b"nonsense")
    with pytest.raises(Refused, match="none of the 1 input files") as refused:
        await runner.measure(job)
    assert str(contents.root) not in str(refused.value)


async def test_an_accounts_content_is_read_in_another_process(contents: Contents) -> None:
    """One that it ends is an attempt that failed; the driver goes on."""
    asked: list[Any] = []

    async def crash(work: Callable[..., Any], *_: Any) -> None:
        asked.append(work)
        raise WorkerCrashedError

    runner = RayJobRunner(lambda: Settings(models=(MODEL,)), contents, crash)
    job = job_of(input_file_id=file_id(0.0))
    for looking in (runner.measure(job), runner.done(job), runner.join(job, OUTPUT, ERROR)):
        with pytest.raises(WorkerCrashedError):
            await looking
    assert [measure, tally, join] == asked


async def test_the_log_has_no_text_of_a_template(
    contents: Contents, caplog: pytest.LogCaptureFixture
) -> None:
    """Its owner sees it; the log has the job and the kind of error."""
    job = job_of(input_file_id=file_id(0.0), task={"template": "a secret {text!r}"})
    with pytest.raises(Refused, match="a secret"):
        await runner_of(contents).measure(job)
    assert "embjob_1: ConfigError" in caplog.text
    assert "secret" not in caplog.text


async def test_what_is_allowed_is_looked_at_again_when_a_job_is_done(tmp_path: Path) -> None:
    """The list may be another by then, and a link."""
    contents = Contents.at(str(tmp_path / "files"))
    allowed, elsewhere = tmp_path / "allowed", tmp_path / "elsewhere"
    for directory in (allowed / "real", elsewhere):
        directory.mkdir(parents=True)
        (directory / "a.parquet").write_bytes(parquet(["a"]))
    job = job_of(input=str(allowed / "in"), output=f"{allowed}/out/embjob_1")
    (allowed / "in").symlink_to(allowed / "real")
    runner = runner_of(contents, str(allowed))
    assert 1 == (await runner.measure(job)).rows
    (allowed / "in").unlink()
    (allowed / "in").symlink_to(elsewhere)
    with pytest.raises(Refused, match="jobs may not use"):
        await runner.measure(job)
    with pytest.raises(Refused, match="Allowed locations: none"):
        await runner_of(contents).done(job)
    contents.close()


async def test_a_model_that_is_not_served_now_may_be_again(tmp_path: Path) -> None:
    """That is tried again."""
    contents = Contents.at(str(tmp_path / "files"))
    with pytest.raises(Overloaded, match="'gone' is not served now"):
        await runner_of(contents).measure(job_of(model="gone", input_file_id=file_id(0.0)))
    contents.close()


async def test_a_locations_results_stay_where_they_are(tmp_path: Path) -> None:
    """They are counted, and no files are made."""
    contents = Contents.at(str(tmp_path / "files"))
    (tmp_path / "a.parquet").write_bytes(parquet(["a", None]))
    job = job_of(input=f"{tmp_path}/a.parquet", output=f"{tmp_path}/out/embjob_1")
    runner = runner_of(contents, str(tmp_path))
    assert Done() == await runner.done(job)
    executor = LocalExecutor(FakeEngine())
    run_job(runner._task(job).job(), lambda _: nullcontext(executor), Silent())
    done = await runner.done(job)
    assert (1, 1) == (done.completed, done.failed)
    assert 1 == pq.read_table(f"{tmp_path}/out/embjob_1").num_rows
    assert [] == Location.parse(tmp_path / "files").list()
    contents.close()
