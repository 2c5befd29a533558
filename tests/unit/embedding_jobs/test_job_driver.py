from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from omai_ray.embedding_jobs.driver import MAX_ATTEMPTS
from omai_ray.embedding_jobs.jobs import MAX_UNFINISHED
from omai_ray.embedding_jobs.queue import Done
from omai_ray.embedding_jobs.runner import Refused
from omai_ray.errors import InvalidRequest, NotFound, Overloaded, ServerError
from omai_ray.identity.directory import Directory
from omai_ray.identity.principal import Principal
from omai_ray.store import EmbeddingJob
from omai_ray.store.tables import accounts
from omai_ray.telemetry import metrics
from omai_ray.telemetry.metrics import Metric
from omai_ray.telemetry.recorder import Recorder
from tests.unit.embedding_jobs.conftest import LEASE_S, ROWS, World


def counts(job: EmbeddingJob) -> tuple[int, int, int, int]:
    """Return a job's rows in all, completed and failed, and its tokens."""
    return job.total, job.completed, job.failed, job.tokens


async def test_a_job_leaves_two_files_and_one_record_at_the_batch_price(world: World) -> None:
    """Rows and dead letters; the upload is free again, and the job's directory is gone."""
    job = await world.run(metadata={"a": "b"})
    assert ("completed", None) == (job.status, job.error)
    assert (ROWS, 9, 1, 63) == counts(job)
    output = await world.files.get(world.account, str(job.output_file_id))
    assert ("batch_output", f"{job.id}_output.parquet", 9) == (
        output.purpose, output.filename, output.bytes,
    )  # fmt: skip
    error = await world.files.get(world.account, str(job.error_file_id))
    assert (f"{job.id}_error.parquet", 1) == (error.filename, error.bytes)
    (record,) = await world.charged(job)
    assert ("/v1/embedding_jobs", 63) == (record["endpoint"], record["prompt_tokens"])
    assert 63 * 2.0 / 1e6 * 0.5 == pytest.approx(record["cost"])
    await world.files.delete(world.account, str(job.input_file_id))
    assert not world.runner.directories


async def test_a_locations_job_leaves_its_own_directory_and_no_files(world: World) -> None:
    """It is named by the job's id, so that no two jobs write to one place."""
    corpora = world.root / "corpora"
    job = await world.run(input=str(corpora), output=f"{corpora}/out/")
    assert ("completed", f"{corpora}/out/{job.id}") == (job.status, job.output)
    assert (None, None) == (job.output_file_id, job.error_file_id)
    assert (ROWS, 9, 1, 63) == counts(job)


async def test_the_upload_cannot_be_deleted_while_its_job_runs(world: World) -> None:
    """Nor can a file of another purpose, or another account, be a job's."""
    job = await world.submit()
    with pytest.raises(InvalidRequest, match="has not ended"):
        await world.files.delete(world.account, str(job.input_file_id))
    await world.open_account("acct_2")
    with pytest.raises(NotFound):
        await world.submit(input_file=await world.upload("acct_2"), input=None)


async def test_what_is_wrong_with_an_input_fails_its_job(world: World) -> None:
    """In the runner's words; nothing is charged, and the file is free."""
    world.runner.fail["measure"] = [Refused("no column 'text'")]
    job = await world.run()
    assert ("failed", {"code": "invalid_job", "message": "no column 'text'"}) == (
        job.status, job.error,
    )  # fmt: skip
    assert not await world.charged(job)
    await world.files.delete(world.account, str(job.input_file_id))


async def test_tokens_enqueued_by_jobs_are_bounded_by_the_tier(world: World) -> None:
    """Four bytes of the input are one; what has ended counts no more."""
    await world.open_account("small", "pro")
    world.runner.bytes = 4001
    job = await world.run(account="small")
    assert job.error is not None
    assert ("failed", "token_limit_exceeded") == (job.status, job.error["code"])
    assert "Limit 1000 tokens, Enqueued 0, Requested 1001" in job.error["message"]
    world.runner.bytes = 4000
    assert ["completed"] * 2 == [(await world.run(account="small")).status for _ in range(2)]


async def test_a_budget_that_is_spent_and_a_suspended_account_fail_their_jobs(
    world: World,
) -> None:
    """Before anything is embedded."""
    await world.open_account("poor", monthly_tokens=99)
    job = await world.run(account="poor")
    assert job.error is not None
    assert "monthly budget: Limit 99" in job.error["message"]
    await world.open_account("gone")
    job = await world.submit(account="gone")
    async with world.store.writing() as connection:
        await connection.execute(
            update(accounts).where(accounts.c.id == "gone").values(status="suspended")
        )
    await world.drive()
    job = await world.queue.read(job.id)
    assert job.error is not None
    assert "suspended" in job.error["message"]
    assert not world.runner.embedded


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"tier": "tiny"}, "Limit 30"), ({"monthly_tokens": 30}, "monthly budget: Limit 30")],
)
async def test_a_job_that_embeds_more_than_its_account_may_is_ended(
    world: World, limits: dict[str, Any], message: str
) -> None:
    """Compressed bytes are but an estimate; what is committed is kept and charged."""
    await world.open_account("small", **limits)
    world.runner.bytes = 40
    world.runner.pause = (7, asyncio.Event())
    job = await asyncio.wait_for(world.run(account="small"), 20.0)
    assert job.error is not None
    assert ("failed", "token_limit_exceeded") == (job.status, job.error["code"])
    assert message in job.error["message"]
    assert (ROWS, 6, 1, 42) == counts(job)
    assert 6 == (await world.files.get("small", str(job.output_file_id))).bytes
    assert [42] == [record["prompt_tokens"] for record in await world.charged(job)]


async def test_looking_at_a_job_writes_nothing_unless_its_numbers_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits is looked at each second."""
    job = await world.submit()
    await world.queue.claim("me", LEASE_S)
    assert await world.queue.begin(job, "me", ROWS, 1, None) is None
    await world.queue.progress(job, "me", Done(1, 0, 7))

    def writing() -> None:
        raise AssertionError("a write")

    monkeypatch.setattr(world.store, "writing", writing)
    for done in (None, Done(1, 0, 7)):
        assert 1 == (await world.queue.progress(job, "me", done)).completed
    with pytest.raises(AssertionError, match="a write"):
        await world.queue.progress(job, "me", Done(2, 0, 14))


async def test_a_cancelled_job_keeps_what_is_done_and_pays_for_it(world: World) -> None:
    """Its run is ended; what it had committed becomes files."""
    job = await world.submit()
    world.runner.pause = (6, asyncio.Event())
    driving = asyncio.create_task(world.drive())
    await world.runner.paused.wait()
    assert "cancelling" == (await world.jobs.cancel(world.account, job.id)).status
    await driving
    job = await world.queue.read(job.id)
    assert "cancelled" == job.status
    assert (ROWS, 5, 1, 35) == counts(job)
    assert 5 == (await world.files.get(world.account, str(job.output_file_id))).bytes
    assert [35] == [record["prompt_tokens"] for record in await world.charged(job)]
    with pytest.raises(InvalidRequest, match="status 'cancelled'") as refused:
        await world.jobs.cancel(world.account, job.id)
    assert "embedding_job_not_cancellable" == refused.value.code


async def test_a_job_cancelled_before_it_began_has_nothing(world: World) -> None:
    """No files, no record; asking twice changes nothing."""
    job = await world.submit()
    for _ in range(2):
        assert "cancelling" == (await world.jobs.cancel(world.account, job.id)).status
    await world.drive()
    job = await world.queue.read(job.id)
    assert ("cancelled", None, None) == (job.status, job.output_file_id, job.error_file_id)
    assert not world.runner.embedded
    assert not await world.charged(job)


async def test_another_driver_goes_on_where_one_was_killed(world: World) -> None:
    """Once its lease has run out; each row is embedded once, and charged once."""
    job = await world.submit()
    world.runner.pause = (6, asyncio.Event())
    driving = asyncio.create_task(world.drive())
    await world.runner.paused.wait()
    driving.cancel()
    await asyncio.gather(driving, return_exceptions=True)
    await world.drive()
    assert "in_progress" == (await world.queue.read(job.id)).status
    world.clock.now_s += LEASE_S + 1
    world.runner.pause = None
    await world.drive()
    job = await world.queue.read(job.id)
    assert "completed" == job.status
    assert [(job.id, row) for row in range(ROWS)] == world.runner.embedded
    assert [63] == [record["prompt_tokens"] for record in await world.charged(job)]


@pytest.mark.parametrize("step", ["measure", "begin", "run", "done", "join", "joined", "discard"])
async def test_what_may_pass_is_tried_again(world: World, step: str) -> None:
    """Each of a job's steps; the outcome is that of an undisturbed one."""
    world.runner.fail[step] = [Overloaded("away"), ServerError("odd"), RuntimeError("odd")]
    job = await world.run()
    assert "completed" == job.status
    assert (ROWS, 9, 1, 63) == counts(job)
    assert 1 == len(await world.charged(job))


@pytest.mark.parametrize("kind", [ServerError, RuntimeError])
async def test_a_job_that_makes_no_progress_fails_in_the_end(
    world: World, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the kind of error, and no text, which may be a caller's."""
    world.runner.fail["run"] = [kind("a secret place")] * (MAX_ATTEMPTS + 1)
    job = await world.run()
    assert job.error is not None
    assert ("failed", "job_failed") == (job.status, job.error["code"])
    assert "secret" not in job.error["message"]
    assert "secret" not in caplog.text
    assert f"{job.id}: {kind.__name__}: tried again in 1 s" in caplog.text
    assert 1 == len(world.runner.fail["run"])


async def test_attempts_count_anew_once_there_is_progress(world: World) -> None:
    """A long job may meet many a failure on its way."""

    class Troubled:
        """Fails after each row."""

        def __init__(self) -> None:
            self.left = 2 * MAX_ATTEMPTS

        def __bool__(self) -> bool:
            self.left -= 1
            return self.left > 0 and self.left % 3 > 0

        def pop(self, _: int) -> Exception:
            return ServerError("odd")

    world.runner.fail["run"] = Troubled()  # type: ignore[assignment]
    assert "completed" == (await world.run()).status


async def test_a_location_that_is_of_no_use_any_more_ends_its_job_all_the_same(
    world: World,
) -> None:
    """By what was told of it last; the platform's own storage is waited for instead."""
    corpora = str(world.root / "corpora")
    world.runner.fail["done"] = [Refused("not allowed any more")]
    job = await world.run(input=corpora, output=corpora)
    assert "completed" == job.status
    assert (ROWS, 9, 1, 63) == counts(job)
    world.runner.fail["done"] = [ServerError("away")] * (MAX_ATTEMPTS + 5)
    job = await world.run(input=corpora, output=corpora)
    assert "completed" == job.status
    assert 5 == len(world.runner.fail["done"])
    world.runner.fail["done"] = [ServerError("away")] * (MAX_ATTEMPTS + 5)
    job = await world.run()
    assert job.output_file_id is not None
    assert not world.runner.fail["done"]


@pytest.mark.parametrize("left", [Done(), Done(ROWS - 2, 1, 0), Done(9, 1, 5)])
async def test_a_location_whose_ledger_was_deleted_is_paid_for(world: World, left: Done) -> None:
    """It is the account's to write to; where rows are missing, the job has failed."""

    async def committed(_: EmbeddingJob) -> Done:
        return left

    world.runner.done = committed  # type: ignore[assignment,method-assign]
    corpora = str(world.root / "corpora")
    job = await world.run(input=corpora, output=corpora)
    whole = left.completed == 9
    assert ("completed" if whole else "failed") == job.status
    assert (None if whole else "results_lost") == (job.error and job.error["code"])
    assert (ROWS, 9, 1, 63) == counts(job)
    assert [63] == [record["prompt_tokens"] for record in await world.charged(job)]


async def test_what_was_only_told_of_a_cancelled_job_is_not_charged(world: World) -> None:
    """Its place is gone: nobody knows what was committed."""
    corpora = str(world.root / "corpora")
    job = await world.submit(input=corpora, output=corpora)
    world.runner.pause = (6, asyncio.Event())
    world.runner.fail["done"] = [Refused("not allowed any more")]
    driving = asyncio.create_task(world.drive(driver := world.driver()))
    await world.runner.paused.wait()
    assert 35 == (await world.queue.progress(job, driver.holder, Done(5, 1, 35))).tokens
    await world.jobs.cancel(world.account, job.id)
    await driving
    job = await world.queue.read(job.id)
    assert ("cancelled", 0) == (job.status, job.tokens)
    assert not await world.charged(job)


async def test_tries_to_end_a_job_leave_no_other_files(world: World) -> None:
    """Its rows and dead letters have the same names each time, and are counted before."""
    world.runner.fail["joined"] = [ServerError("away")] * 3
    job = await world.run()
    names = {job.input_file_id, job.output_file_id, job.error_file_id}
    assert names == {stat.name for stat in world.contents.root.list()}


async def test_results_that_are_gone_are_waited_for_an_hour(world: World) -> None:
    """A directory that is not mounted looks like one that is empty; then the job has failed."""
    job = await world.submit()
    committed, gone = world.runner.done, 3

    async def empty(job: EmbeddingJob) -> Done:
        nonlocal gone
        gone -= 1
        return Done() if gone >= 0 else await committed(job)

    world.runner.done = empty  # type: ignore[method-assign]
    await world.drive()
    job = await world.queue.read(job.id)
    assert ("completed", -1) == (job.status, gone)
    assert (ROWS, 9, 1, 63) == counts(job)

    async def never(_: object) -> Done:
        world.clock.now_s += 600.0
        return Done()

    world.runner.done = never  # type: ignore[assignment,method-assign]
    job = await world.run()
    assert job.error is not None
    assert ("failed", "results_lost", None) == (job.status, job.error["code"], job.output_file_id)
    assert (ROWS, 9, 1, 63) == counts(job)


async def test_progress_goes_on_while_the_database_is_away(world: World) -> None:
    """What is at work is not ended for want of a place to note it."""

    class Away:
        def __init__(self) -> None:
            self.asked = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(world.queue, name)

        async def progress(self, *_: object) -> EmbeddingJob:
            self.asked += 1
            raise Overloaded("away")

    away = Away()
    corpora = str(world.root / "corpora")
    job = await world.submit(input=corpora, output=corpora)
    world.runner.fail["done"] = [Refused("not allowed any more")]
    await world.drive(world.driver(away))
    job = await world.queue.read(job.id)
    assert ("completed", (ROWS, 9, 1, 63)) == (job.status, counts(job))  # as told at its end
    assert away.asked
    assert ROWS == len(world.runner.embedded)


async def test_directories_of_jobs_that_have_ended_are_swept(world: World) -> None:
    """A driver may die between a job's end and its directory's."""
    job = await world.submit()
    world.runner.directories = {"embjob_gone", job.id}
    await world.driver()._sweep()
    assert {job.id} == world.runner.directories


async def test_an_account_has_so_many_jobs_at_once(world: World) -> None:
    """One more is refused by name; an ended one makes room."""
    file = await world.upload()
    jobs = [await world.submit(input_file=file, input=None) for _ in range(MAX_UNFINISHED)]
    with pytest.raises(InvalidRequest, match="100 embedding jobs that have not ended") as refused:
        await world.submit()
    assert "too_many_embedding_jobs" == refused.value.code
    await world.jobs.cancel(world.account, jobs[0].id)
    driver = world.driver()
    await world.queue.claim(driver.holder, LEASE_S)
    await driver.drive(jobs[0])
    await world.submit()


async def test_what_there_is_is_told_to_the_recorder(world: World) -> None:
    """Jobs by status, and rows by result."""
    told: dict[tuple[str, str], float] = {}

    class Told(Recorder):
        def set(self, metric: Metric, value: float, *labels: str) -> None:
            told[metric.name, labels[0]] = value

        def count_to(self, metric: Metric, total: float, *labels: str) -> None:
            told[metric.name, labels[0]] = total

    await world.run()
    await world.submit()
    await world.driver(recorder=Told()).observe()
    assert 1 == told[metrics.EMBEDDING_JOBS.name, "validating"]
    assert 0 == told[metrics.EMBEDDING_JOBS.name, "in_progress"]
    rows = metrics.EMBEDDING_JOB_ROWS.name
    assert (9, 1) == (told[rows, "completed"], told[rows, "failed"])


@pytest.mark.parametrize("max_running", [1, 2])
async def test_jobs_that_fit_alone_but_not_together_do_not_exceed_the_budget(
    world: World, max_running: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is looked at again when its turn comes, whether others are at work or have ended.

    The directory takes its time, so that jobs which may run at once are looked at together.
    """
    owner = Directory.owner

    async def slow_owner(*of: Any) -> Principal:
        await asyncio.sleep(0.05)
        return await owner(*of)

    monkeypatch.setattr(Directory, "owner", slow_owner)
    await world.open_account("poor", monthly_tokens=150)
    jobs = [await world.submit(account="poor") for _ in range(3)]
    await world.drive(world.driver(max_running=max_running))
    ended = [await world.queue.read(job.id) for job in jobs]
    assert ["completed", "failed", "failed"] == sorted(job.status for job in ended)
    errors = [job.error for job in ended if job.error is not None]
    assert all(error["code"] == "insufficient_quota" for error in errors)
    assert 1 == sum([len(await world.charged(job)) for job in jobs])
