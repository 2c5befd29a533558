from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from omai_ray.batches import check
from omai_ray.batches.answering import LineRequest, _first
from omai_ray.batches.batches import WINDOW_S
from omai_ray.batches.driver import INPUT_MISSED_S
from omai_ray.batches.queue import BatchQueue
from omai_ray.batches.turns import Turns
from omai_ray.batches.watch import Looks
from omai_ray.errors import InvalidRequest, NotFound, Overloaded, ServerError
from omai_ray.files import Files
from omai_ray.storage import ObjectNotFound
from omai_ray.store import Batch, BatchUnit
from omai_ray.telemetry.metrics import Metric
from omai_ray.telemetry.recorder import Recorder
from tests.unit.batches.conftest import (
    LEASE_S,
    Echo,
    InTurn,
    World,
    briefly,
    forever,
    jsonl,
    request,
)

LINES = [request(f"r{number}", f"text {number}") for number in range(10)]
ECHOED = {f"r{number}": f"text {number}" for number in range(10)}


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide inputs into units of three lines."""
    monkeypatch.setattr(check, "UNIT_LINES_OF_TEXT", 3)


def counts(batch: Batch) -> tuple[int, int, int]:
    """Return a batch's total, completed and failed requests."""
    return batch.total, batch.completed, batch.failed


async def test_every_line_is_answered_once_and_counted(world: World) -> None:
    """completed; one output file of the owner's, no error file; tokens are summed up."""
    echo = Echo()
    batch = await world.run(LINES, echo, output_expires_s=3600, metadata={"a": "b"})
    assert "completed" == batch.status
    assert (10, 10, 0) == counts(batch)
    assert (30, 20, 10) == (batch.prompt_tokens, batch.completion_tokens, batch.cached_tokens)
    assert ECHOED == await world.results(batch)
    assert batch.error_file_id is None
    output = await world.files.get(world.account, str(batch.output_file_id))
    assert ("batch_output", f"{batch.id}_output.jsonl") == (output.purpose, output.filename)
    assert output.created + 3600 == output.expires
    assert {1} == set(echo.asked.values())
    source = await world.files.get(world.account, batch.input_file_id)
    assert 0 == source.in_use


async def test_lines_that_fail_are_in_the_error_file(world: World) -> None:
    """With the status and the envelope that a request would have got."""
    echo = Echo({"text 1": [400], "text 5": [429]})
    batch = await world.run(LINES, echo)
    assert "completed" == batch.status
    assert (10, 8, 2) == counts(batch)
    assert ECHOED | {"r1": 400, "r5": 429} == await world.results(batch)
    errors = await world.read_file(batch.error_file_id)
    assert {"r1", "r5"} == {line["custom_id"] for line in errors}
    assert {"error"} == set(errors[0]["response"]["body"])


async def test_a_failure_that_may_pass_is_tried_again(world: World) -> None:
    """A model that was away answers later; one that fails three times has failed."""
    echo = Echo({"text 1": [503, 503, 503, 503, 200], "text 2": [500, 200], "text 3": [500]})
    batch = await world.run(LINES, echo)
    assert ECHOED | {"r3": 500} == await world.results(batch)
    assert 3 == echo.asked[f"use_{batch.id}_4"]


async def test_an_input_that_cannot_be_run_fails_with_its_lines(world: World) -> None:
    """Nothing of it is answered, and the file is free again."""
    echo = Echo()
    batch = await world.run([LINES[0], "{nonsense", LINES[0]], echo)
    assert "failed" == batch.status
    assert batch.errors is not None
    assert [("invalid_json_line", 2), ("duplicate_custom_id", 3)] == [
        (error["code"], error["line"]) for error in batch.errors
    ]
    assert not echo.asked
    await world.files.delete(world.account, batch.input_file_id)


async def test_the_input_cannot_be_deleted_while_its_batch_runs(world: World) -> None:
    """Before, deletion is refused."""
    batch = await world.submit(LINES)
    with pytest.raises(InvalidRequest, match="has not ended"):
        await world.files.delete(world.account, batch.input_file_id)


async def test_a_cancelled_batch_keeps_what_is_answered(world: World) -> None:
    """The rest of the running unit, and those after it, say batch_cancelled."""
    batch = await world.submit(LINES)

    async def cancel_at_r4(asked: LineRequest) -> None:
        if asked.usage_id.endswith("_5"):
            await world.batches.cancel(world.account, batch.id)
        if asked.usage_id.endswith(("_5", "_6")):
            await asyncio.Event().wait()

    echo = Echo(before=cancel_at_r4)
    await world.drive(world.driver(InTurn(world.worker(echo))))
    ended = await world.queue.read(batch.id)
    assert "cancelled" == ended.status
    assert None is not ended.cancelling_at
    answered = {f"r{number}": f"text {number}" for number in range(4)}
    stopped = {f"r{number}": "batch_cancelled" for number in range(4, 10)}
    assert answered | stopped == await world.results(ended)
    assert (10, 4, 6) == counts(ended)


async def test_a_batch_cancelled_before_it_began_has_no_files(world: World) -> None:
    """It ends as cancelled all the same, and cannot be cancelled then."""
    batch = await world.submit(LINES)
    assert "cancelling" == (await world.batches.cancel(world.account, batch.id)).status
    assert "cancelling" == (await world.batches.cancel(world.account, batch.id)).status
    await world.drive(world.driver(InTurn(world.worker(Echo()))))
    ended = await world.queue.read(batch.id)
    assert ("cancelled", None, None) == (ended.status, ended.output_file_id, ended.error_file_id)
    with pytest.raises(InvalidRequest, match="status 'cancelled'"):
        await world.batches.cancel(world.account, batch.id)


async def test_a_batch_that_outlasts_its_window_expires(world: World) -> None:
    """What is answered is kept, the rest says batch_expired."""

    async def oversleep(asked: LineRequest) -> None:
        if asked.usage_id.endswith("_3"):
            world.clock.now_s += WINDOW_S
            await asyncio.Event().wait()

    batch = await world.run(LINES, Echo(before=oversleep))
    assert "expired" == batch.status
    assert None is not batch.expired_at
    stopped = {f"r{number}": "batch_expired" for number in range(2, 10)}
    assert {"r0": "text 0", "r1": "text 1"} | stopped == await world.results(batch)


async def test_workers_that_hang_hold_up_no_cancellation(world: World) -> None:
    """After a while the batch is closed without them; what they commit later is refused."""
    batch = await world.submit(LINES)
    late: list[BatchUnit] = []

    class Hangs:
        async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
            late.extend(units)
            await world.batches.cancel(world.account, batch.id)
            await asyncio.Event().wait()

    driver = world.driver(Hangs())
    driver._grace_s = 0.0
    await world.drive(driver)
    ended = await world.queue.read(batch.id)
    assert "cancelled" == ended.status
    assert {"batch_cancelled"} == set((await world.results(ended)).values())
    assert not await world.worker(Echo()).do(late[0])


async def test_a_suspended_accounts_lines_are_refused(world: World) -> None:
    """Each fails with what a request of theirs would get."""
    batch = await world.submit(LINES)

    class Suspends(InTurn):
        async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
            from sqlalchemy import update

            from omai_ray.store.tables import accounts

            async with world.store.writing() as connection:
                await connection.execute(update(accounts).values(status="suspended"))
            await super().run(batch, units)

    echo = Echo()
    await world.drive(world.driver(Suspends(world.worker(echo))))
    ended = await world.queue.read(batch.id)
    assert ("completed", (10, 0, 10)) == (ended.status, counts(ended))
    errors = await world.read_file(ended.error_file_id)
    assert {403} == {line["response"]["status_code"] for line in errors}
    assert not echo.asked


async def test_the_tiers_enqueued_tokens_hold_for_all_batches_of_an_account(
    world: World,
) -> None:
    """One that does not fit beside the others fails; once they have ended, it fits."""
    await world.open_account("acct_2", "pro")
    lines = [request(str(n), "x" * 1500) for n in range(2)]  # some 800 tokens of the 1,000
    first = await world.submit(lines, "acct_2")
    second = await world.submit(lines, "acct_2")
    driver = world.driver(InTurn(world.worker(Echo())))
    (claimed, other) = await world.queue.claim(driver.holder, LEASE_S)
    assert [first.id, second.id] == [claimed.id, other.id]
    assert not await driver._step(first.id)
    await driver.drive(other)
    refused = await world.queue.read(second.id)
    assert refused.errors is not None
    assert ["token_limit_exceeded"] == [error["code"] for error in refused.errors]
    assert "Limit 1000 tokens" in refused.errors[0]["message"]
    await driver.drive(claimed)
    assert "completed" == (await world.queue.read(first.id)).status
    third = await world.submit(lines, "acct_2")
    await world.drive(driver)
    assert "completed" == (await world.queue.read(third.id)).status


async def test_a_batch_has_one_driver_and_another_after_its_lease(world: World) -> None:
    """The one that overslept changes nothing any more."""
    batch = await world.submit(LINES)
    first, second = (world.driver(InTurn(world.worker(Echo()))) for _ in range(2))
    assert [batch.id] == [b.id for b in await world.queue.claim(first.holder, LEASE_S)]
    assert [] == await world.queue.claim(second.holder, LEASE_S)
    assert {batch.id} == await world.queue.renew(first.holder, [batch.id], LEASE_S)
    world.clock.now_s += LEASE_S + 1
    assert [batch.id] == [b.id for b in await world.queue.claim(second.holder, LEASE_S)]
    assert set() == await world.queue.renew(first.holder, [batch.id], LEASE_S)
    await first.drive(batch)  # returns
    assert "validating" == (await world.queue.read(batch.id)).status
    await second.drive(batch)
    assert ECHOED == await world.results(await world.queue.read(batch.id))


async def test_of_two_workers_at_one_unit_the_first_is_kept(world: World) -> None:
    """The other's answers are dropped, and so is its part."""
    batch = await world.submit(LINES)

    class Twice(InTurn):
        async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
            outcomes = await asyncio.gather(
                *(self._worker.do(unit) for unit in units for _ in range(2))
            )
            assert [len(units), len(units)] == [outcomes.count(True), outcomes.count(False)]

    await world.drive(world.driver(Twice(world.worker(Echo()))))
    ended = await world.queue.read(batch.id)
    assert (10, 10, 0) == counts(ended)
    assert ECHOED == await world.results(ended)
    parts = await world.contents.names_before(2e10)
    assert 4 == sum(name.startswith("batch_") for name in parts)


class Died(Exception):
    """Every use of something that is dead."""


class Mortal:
    """What a process holds of the database, storage and models, up to one use of them.

    At the `last` use it dies: before it takes effect, or after.
    """

    def __init__(self, last: int, *, after: bool) -> None:
        self.uses = 0
        self.dead = asyncio.Event()
        self._last = last
        self._after = after

    def hold(self, what: Any) -> Any:
        return _Held(self, what)

    async def use(self, method: Any, args: Any, kwargs: Any) -> Any:
        if self.dead.is_set():
            if method.__name__ == "discard":  # what tidies up hides no cancellation
                return None
            raise Died
        self.uses += 1
        last = self.uses == self._last
        if last and not self._after:
            self.dead.set()
            raise Died
        result = await method(*args, **kwargs)
        if last:
            self.dead.set()
            raise Died
        return result


class _Held:
    def __init__(self, mortal: Mortal, what: Any) -> None:
        self._mortal, self._what = mortal, what

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._what, name)
        if name == "draft":
            return lambda file: _Held(self._mortal, found(file))
        if not asyncio.iscoroutinefunction(found):
            return found

        async def use(*args: Any, **kwargs: Any) -> Any:
            return await self._mortal.use(found, args, kwargs)

        return use


async def live(world: World, echo: Echo, mortal: Mortal) -> None:
    """Drive what is free until it ends or the process dies."""
    queue, contents = mortal.hold(world.queue), mortal.hold(world.contents)
    worker = world.worker(mortal.hold(echo), queue, contents, forever, watch_s=1e9)
    driver = world.driver(InTurn(worker), queue, contents, forever)
    driving = asyncio.create_task(world.drive(driver))
    dying = asyncio.create_task(mortal.dead.wait())
    await asyncio.wait({driving, dying}, return_when=asyncio.FIRST_COMPLETED)
    for task in (driving, dying):
        task.cancel()
    await asyncio.gather(driving, dying, return_exceptions=True)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_killed_at_any_point_a_batch_ends_as_if_nothing_was(
    world: World, after: bool
) -> None:
    """Another driver goes on: no line is lost, none is there twice, each counts once."""
    statuses = {"text 2": [400]}
    lines, expected = LINES[:5], {n: ECHOED[n] for n in ("r0", "r1", "r3", "r4")} | {"r2": 400}
    uninterrupted = Mortal(10**9, after=after)
    batch = await world.submit(lines)
    await live(world, Echo(dict(statuses)), uninterrupted)
    assert expected == await world.results(await world.queue.read(batch.id))
    for last in range(1, uninterrupted.uses + 1):
        batch = await world.submit(lines)
        echo = Echo(dict(statuses))
        await live(world, echo, Mortal(last, after=after))
        world.clock.now_s += LEASE_S + 1
        await live(world, echo, Mortal(10**9, after=after))
        ended = await world.queue.read(batch.id)
        assert ("completed", (5, 4, 1)) == (ended.status, counts(ended)), last
        assert expected == await world.results(ended), last
        assert 4 == len(echo.used), last


async def test_what_is_left_of_ended_batches_is_removed(world: World) -> None:
    """Their parts at once; one that was never any unit's after some days."""
    batch = await world.run(LINES, Echo())
    stray = world.contents.draft(f"{batch.id}-00000-lost")
    await stray.write(b"x")
    await stray.complete()
    driver = world.driver(InTurn(world.worker(Echo())))
    await driver._sweep()
    names = await world.contents.names_before(2e10)
    assert [f"{batch.id}-00000-lost"] == [n for n in names if n.startswith("batch_")]
    assert [] == await world.queue.units(batch.id)
    world.clock.now_s = 1e11
    await driver._sweep()
    assert not [n for n in await world.contents.names_before(2e10) if n.startswith("batch_")]


async def test_however_many_batches_have_ended_what_is_left_of_them_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sweep, though they are read a few at a time."""
    monkeypatch.setattr("omai_ray.batches.queue.CLAIMED_AT_ONCE", 2)
    for _ in range(5):
        await world.run(LINES, Echo())
    await world.driver(InTurn(world.worker(Echo())))._sweep()
    assert not await world.queue.with_leftovers()


async def test_a_part_that_a_unit_has_is_kept_however_old(world: World) -> None:
    """A batch may hang for days before it ends, and wants its parts then."""
    batch = await world.submit(LINES)
    worker = world.worker(Echo())
    driver = world.driver(InTurn(worker))
    await world.queue.claim(driver.holder, LEASE_S)
    await driver._step(batch.id)
    assert await worker.do((await world.queue.units(batch.id))[0])
    now_s, world.clock.now_s = world.clock.now_s, 1e11
    await driver._sweep()
    world.clock.now_s = now_s
    await driver.drive(batch)
    assert ECHOED == await world.results(await world.queue.read(batch.id))


async def test_what_is_held_without_being_known_is_free_again_after_the_lease(
    world: World,
) -> None:
    """A claim may be committed and yet fail: whoever made it does not keep what it drives not."""
    batch = await world.submit(LINES)
    driver = world.driver(InTurn(world.worker(Echo())))
    await world.queue.claim(driver.holder, LEASE_S)
    world.clock.now_s += LEASE_S - 1
    driver._driving["another"] = asyncio.create_task(asyncio.sleep(0))
    await driver._renew()
    world.clock.now_s += 2
    assert [batch.id] == [b.id for b in await world.queue.claim(driver.holder, LEASE_S)]


async def test_a_line_whose_answering_breaks_fails_alone(world: World) -> None:
    """Or its unit would be tried again for ever."""

    async def break_at_r2(asked: LineRequest) -> None:
        if asked.usage_id.endswith("_3"):
            raise RecursionError("too deep")

    batch = await world.run(LINES, Echo(before=break_at_r2))
    assert "completed" == batch.status
    assert (10, 9, 1) == counts(batch)
    assert ECHOED | {"r2": 500} == await world.results(batch)


@pytest.mark.parametrize("input_gone", [False, True])
async def test_answers_that_are_gone_are_said_to_be_so(world: World, input_gone: bool) -> None:
    """After an hour the batch ends with the others; where the input is gone too, by its errors."""
    batch = await world.submit(LINES)

    async def passing(seconds: float) -> None:
        world.clock.now_s += seconds
        await briefly(seconds)

    class Loses(InTurn):
        async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
            await super().run(batch, units)
            lost = (await world.queue.units(batch.id))[1].part
            await world.contents.delete(str(lost))
            if input_gone:
                await world.contents.delete(batch.input_file_id)

    await world.drive(world.driver(Loses(world.worker(Echo())), sleep=passing))
    ended = await world.queue.read(batch.id)
    assert ("completed", (10, 7, 3)) == (ended.status, counts(ended))
    assert (ended.finalizing_at or 0) + 3600 < (ended.completed_at or 0)
    kept = {name: text for name, text in ECHOED.items() if name not in ("r3", "r4", "r5")}
    if input_gone:
        assert kept == await world.results(ended)
        assert ended.errors is not None
        (error,) = ended.errors
        assert "invalid_file" == error["code"]
        assert "3 requests" in error["message"]
    else:
        lost = dict.fromkeys(("r3", "r4", "r5"), "answer_lost")
        assert kept | lost == await world.results(ended)
        assert ended.errors is None


async def test_a_batch_whose_input_vanishes_fails_and_keeps_what_is_answered(
    world: World,
) -> None:
    """After some minutes, not at the end of its window; its errors say how many lines are lost."""
    batch = await world.submit(LINES)
    began_s = world.clock.now_s

    async def passing(seconds: float) -> None:
        world.clock.now_s += seconds
        await briefly(seconds)

    class Loses(InTurn):
        async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
            await self._worker.do(units[0])
            await world.contents.delete(batch.input_file_id)

    await world.drive(world.driver(Loses(world.worker(Echo())), sleep=passing))
    ended = await world.queue.read(batch.id)
    assert ("failed", (10, 3, 7)) == (ended.status, counts(ended))
    assert INPUT_MISSED_S < (ended.failed_at or 0) - began_s < 2 * INPUT_MISSED_S
    assert {name: ECHOED[name] for name in ("r0", "r1", "r2")} == await world.results(ended)
    assert ended.errors is not None
    (error,) = ended.errors
    assert "invalid_file" == error["code"]
    assert "7 requests" in error["message"]


async def test_an_input_that_is_away_for_a_while_is_waited_for(world: World) -> None:
    """As where its directory is mounted late; nothing is asked of workers meanwhile."""
    content = jsonl(LINES)
    file = await world.upload(content)
    batch = await world.batches.create(
        world.account, None, input_file_id=file.id, endpoint="/v1/chat/completions"
    )
    driver = world.driver(InTurn(world.worker(Echo())))
    (claimed,) = await world.queue.claim(driver.holder, LEASE_S)
    await driver._step(batch.id)
    await world.contents.delete(file.id)
    for _ in range(2):
        with pytest.raises(ObjectNotFound):
            await driver._step(batch.id)
        world.clock.now_s += INPUT_MISSED_S - 1
        draft = world.contents.draft(file.id)
        await draft.write(content)
        await draft.complete()
        assert not await driver._input_is_gone(claimed)
        await world.contents.delete(file.id)
    draft = world.contents.draft(file.id)
    await draft.write(content)
    await draft.complete()
    await driver.drive(claimed)
    assert ECHOED == await world.results(await world.queue.read(batch.id))


async def test_files_are_assembled_once_however_often_their_rows_fail(world: World) -> None:
    """Each try would leave a copy of them."""
    batch = await world.submit(LINES)
    outcomes: list[Exception | None] = [Overloaded("away"), Overloaded("away"), None]

    class Flaky:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.queue, name)

        async def finish(self, *args: Any) -> None:
            if (outcome := outcomes.pop(0)) is not None:
                raise outcome
            await world.queue.finish(*args)

    await world.drive(world.driver(InTurn(world.worker(Echo())), Flaky()))
    assert [] == outcomes
    assert "completed" == (await world.queue.read(batch.id)).status
    names = await world.contents.names_before(2e10)
    assert 2 == sum(name.startswith("file-") for name in names)  # the input and the output


async def test_a_failure_of_ours_is_not_the_inputs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the batch nor a line ends by it: both are tried again."""
    batch = await world.submit(LINES)
    worker = world.worker(Echo())
    driver = world.driver(InTurn(worker))
    both: list[Any] = [driver, worker]
    for one in both:
        owner, outcomes = one._owner, [ServerError("broken")]

        async def flaky(
            *args: Any, owner: Any = owner, outcomes: list[ServerError] = outcomes
        ) -> Any:
            if outcomes:
                raise outcomes.pop()
            return await owner(*args)

        monkeypatch.setattr(one, "_owner", flaky)
    await world.drive(driver)
    ended = await world.queue.read(batch.id)
    assert ("completed", (10, 10, 0)) == (ended.status, counts(ended))


async def test_a_watch_that_breaks_stops_no_batch() -> None:
    """The work is given up, to be done again; its lines are not called expired."""

    async def breaks() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await _first(asyncio.create_task(breaks()), forever(0))


async def test_batches_that_are_looked_after_together_are_so_by_one_query(world: World) -> None:
    """However many a driver has; who asks while one runs is told by the next."""
    made = [await world.submit(LINES[:1]) for _ in range(20)]
    await world.batches.cancel(world.account, made[3].id)
    queries: list[set[str]] = []

    class Counted:
        async def over(self, asked: set[str]) -> set[str]:
            queries.append(asked)
            return await world.queue.over(asked)

    looks = Looks(cast("BatchQueue", Counted()))
    over = await asyncio.gather(*(looks.is_over(batch.id) for batch in made))
    assert [3] == [number for number, is_over in enumerate(over) if is_over]
    assert [{batch.id for batch in made}] == queries
    world.clock.now_s += WINDOW_S
    assert await looks.is_over(made[0].id)


async def test_a_server_that_starts_again_goes_on_with_its_batches(world: World) -> None:
    """Those that its last life has begun, and those that it had not come to."""
    begun, other = await world.submit(LINES), await world.submit(LINES[:1])
    worker = world.worker(Echo())
    first = world.driver(InTurn(worker))
    await world.queue.claim(first.holder, LEASE_S)
    await first._step(begun.id)
    assert await worker.do((await world.queue.units(begun.id))[0])

    world.clock.now_s += LEASE_S + 1
    echo = Echo()
    queue = BatchQueue(world.store, Files(world.store, world.contents, world.clock), world.clock)
    again = world.driver(InTurn(world.worker(echo, queue)), queue)
    running = asyncio.create_task(again.run())
    async with asyncio.timeout(30):
        for batch in (begun, other):
            while (await world.queue.read(batch.id)).status != "completed":
                await briefly(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ECHOED == await world.results(await world.queue.read(begun.id))
    assert {f"use_{begun.id}_{n}" for n in range(4, 11)} | {f"use_{other.id}_1"} == echo.used


async def test_a_database_that_is_away_for_a_while_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither driver nor worker gives up, and nothing is answered twice."""
    batch = await world.submit(LINES)
    echo = Echo()
    failures = {"commit": 3, "begin": 2, "close": 2, "finish": 2, "units": 1}

    class Flaky:
        def __getattr__(self, name: str) -> Any:
            found = getattr(world.queue, name)

            async def call(*args: Any, **kwargs: Any) -> Any:
                if failures.get(name):
                    failures[name] -= 1
                    raise Overloaded("away")
                return await found(*args, **kwargs)

            return call

    flaky = Flaky()
    driver = world.driver(InTurn(world.worker(echo, flaky)), flaky)
    await world.drive(driver)
    assert not any(failures.values())
    ended = await world.queue.read(batch.id)
    assert ECHOED == await world.results(ended)
    assert {1} == set(echo.asked.values())


async def test_drivers_do_what_comes_until_they_are_stopped(world: World) -> None:
    """`run` claims, renews and drives; stopping it leaves what runs to the next one."""
    answered = asyncio.Event()

    async def note(_: LineRequest) -> None:
        answered.set()
        await asyncio.Event().wait()

    batch = await world.submit(LINES)
    worker = world.worker(Echo(before=note), sleep=asyncio.sleep, watch_s=1e9)
    running = asyncio.create_task(world.driver(InTurn(worker), sleep=asyncio.sleep).run())
    await answered.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    world.clock.now_s += LEASE_S + 1
    await world.drive(world.driver(InTurn(world.worker(Echo()))))
    assert ECHOED == await world.results(await world.queue.read(batch.id))


async def test_a_free_turn_goes_to_the_account_that_has_the_fewest() -> None:
    """However many batches another account has waiting before."""
    turns, order = Turns(1), []
    gate = asyncio.Event()

    async def run(account: str) -> None:
        async with turns.turn(account):
            order.append(account)
            await gate.wait()

    tasks = [asyncio.create_task(run("a")) for _ in range(3)]
    await briefly(0)
    tasks.append(asyncio.create_task(run("b")))
    waiting = asyncio.create_task(run("c"))
    await briefly(0)
    waiting.cancel()
    await briefly(0)
    gate.set()
    await asyncio.gather(*tasks)
    assert ["a", "a", "a", "b"] == sorted(order)
    async with asyncio.timeout(5), turns.turn("d"):
        pass


async def test_a_turn_passes_by_who_was_cancelled_just_now() -> None:
    """Their task has yet to run."""
    turns, gate = Turns(1), asyncio.Event()

    async def run() -> None:
        async with turns.turn("a"):
            await gate.wait()

    first = asyncio.create_task(run())
    await briefly(0)
    second, third = (asyncio.create_task(run()) for _ in range(2))
    await briefly(0)
    gate.set()  # the first ends, and gives its turn, before the second hears of its end
    second.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(first, third)
    assert second.cancelled()


async def test_other_accounts_see_nothing_of_a_batch(world: World) -> None:
    """Theirs is not found, in no list, and not to be cancelled."""
    batch = await world.submit(LINES)
    await world.open_account("acct_2")
    for ask in (world.batches.get, world.batches.cancel):
        with pytest.raises(NotFound):
            await ask("acct_2", batch.id)
    assert [] == (await world.batches.list("acct_2")).items
    with pytest.raises(NotFound):
        await world.batches.create(
            "acct_2", None, input_file_id=batch.input_file_id, endpoint="/v1/chat/completions"
        )


async def test_batches_are_listed_newest_first_a_page_at_a_time(world: World) -> None:
    """`after` goes on where the last page ended."""
    made = []
    for _ in range(3):
        made.append((await world.submit(LINES[:1])).id)
        world.clock.now_s += 1
    first = await world.batches.list(world.account, limit=2)
    assert ([made[2], made[1]], True) == ([batch.id for batch in first.items], first.has_more)
    rest = await world.batches.list(world.account, after=made[1], limit=2)
    assert ([made[0]], False) == ([batch.id for batch in rest.items], rest.has_more)


async def test_what_there_is_to_do_and_what_was_done_is_measured(world: World) -> None:
    """Batches by status, their tokens, and requests by what became of them."""
    recorder = Recorder()
    driver = world.driver(InTurn(world.worker(Echo())))
    driver._recorder = recorder
    await world.run(LINES, Echo({"text 1": [400]}))
    await world.submit(LINES)
    await driver.observe()
    taken: list[tuple[str, float, tuple[str, ...]]] = []

    class Taking:
        def count(self, metric: Metric, amount: float, labels: dict[str, str]) -> None:
            taken.append((metric.name, amount, tuple(labels.values())))

        set = count

        def observe(self, metric: Metric, values: Any, labels: dict[str, str]) -> None:
            raise AssertionError(metric.name)

    recorder.flush(Taking())
    assert ("omai_batches", 1, ("validating",)) in taken
    assert ("omai_batches", 0, ("in_progress",)) in taken
    assert ("omai_batch_requests", 9, ("completed",)) in taken
    assert ("omai_batch_requests", 1, ("failed",)) in taken
