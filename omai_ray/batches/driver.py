"""Drives batches from state to state: whatever dies, another driver goes on from what is stored.

validating → in_progress → finalizing → completed; or failed, by its input or for want of it; or
expired, by the window; or cancelling → cancelled.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from omai_ray.batches.answering import Owner
from omai_ray.batches.check import CheckedInput, InvalidInput, Problem, check_input
from omai_ray.batches.driving import LEASE_S, POLL_S, Driving
from omai_ray.batches.leases import UNFINISHED
from omai_ray.batches.lines import EMBEDDINGS
from omai_ray.batches.queue import Assembled, BatchQueue
from omai_ray.batches.results import assemble
from omai_ray.batches.turns import Turns
from omai_ray.batches.watch import Looks, Sleep, Watch, stop_of
from omai_ray.catalog import Catalog, Task
from omai_ray.errors import OMAiError, Overloaded
from omai_ray.files import Contents
from omai_ray.identity.principal import Principal
from omai_ray.quota.tiers import tier_of
from omai_ray.settings import Tier
from omai_ray.storage import ObjectNotFound
from omai_ray.store import Batch, BatchOutcome, BatchUnit
from omai_ray.telemetry import metrics
from omai_ray.telemetry.recorder import Recorder

GRACE_S = 20.0
"""How long workers of a batch that is to stop may take to commit what they have."""
INPUT_MISSED_S = 300.0
"""How long an input may be missing: where a directory is not mounted, all files are."""
PART_LIFE_S = 3 * 86_400.0
"""How old a part that no unit has must be to be nobody's: no worker is at it any more."""
_KEPT_S = 3600.0
"""How old assembled files may be to become files: content without a row is removed in the end."""
_SWEPT_AT_ONCE = 500
_READ_BYTES = 1 << 20
_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Has workers answer units somewhere."""

    async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
        """Return once each unit was tried. Raises where there can be no workers.

        Cancelling it lets go of the workers.
        """


@dataclass(frozen=True)
class Rules:
    """What a batch's input may be. longest: bytes of a line."""

    catalog: Catalog
    tiers: Mapping[str, Tier]
    longest: int

    def resolver(self, batch: Batch, owner: Principal) -> Callable[[str], str]:
        """Return what finds the model that a request names. Raises OMAiError."""
        task: Task = "embedding" if batch.endpoint == EMBEDDINGS else "chat"

        def resolve(name: str) -> str:
            spec = self.catalog.resolve(name, task)
            owner.require_model(name, spec.name)
            return spec.name

        return resolve

    def enqueued_tokens(self, owner: Principal) -> int | None:
        """Return how many tokens an account may have enqueued. Raises PermissionDenied."""
        return tier_of(owner.tier, self.tiers).batch_enqueued_tokens


class Driver(Driving[Batch]):
    """Does what batches there are; of any number of drivers, each batch has one.

    rules: what inputs are checked by; may be replaced. max_running: batches answered at once.
    clock: seconds since the epoch. recorder: is told of what there is.
    """

    def __init__(
        self,
        queue: BatchQueue,
        contents: Contents,
        executor: Executor,
        owner: Owner,
        rules: Rules,
        *,
        max_running: int,
        lease_s: float = LEASE_S,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(queue, lease_s=lease_s, poll_s=poll_s, sleep=sleep)
        self._recorder = recorder or Recorder()
        self.rules = rules
        self._queue = queue
        self._contents = contents
        self._executor = executor
        self._owner = owner
        self._turns = Turns(max_running)
        self._looks = Looks(queue)
        self._grace_s = grace_s
        self._clock = clock
        self._assembled: dict[str, tuple[float, Assembled]] = {}
        self._missing: dict[str, float] = {}

    async def observe(self) -> None:
        """Tell the recorder what there is to do, and what was done."""
        seen, recorder = await self._queue.overview(), self._recorder
        for status in UNFINISHED:
            recorder.set(metrics.BATCHES, seen.unfinished.get(status, 0), status)
        recorder.set(metrics.BATCH_TOKENS, seen.enqueued_tokens)
        recorder.count_to(metrics.BATCH_REQUESTS, seen.completed, "completed")
        recorder.count_to(metrics.BATCH_REQUESTS, seen.failed, "failed")

    async def _sweep(self) -> None:
        """Remove parts of batches that have ended, and old ones that no unit has."""
        while ended := await self._queue.with_leftovers():
            for batch in ended:
                for unit in await self._queue.units(batch):
                    if unit.part is not None:
                        await self._contents.delete(unit.part)
                await self._queue.forget_units(batch)
        found = await self._contents.names_before(self._clock() - PART_LIFE_S)
        old = [name for name in found if name.startswith("batch_")]
        for start in range(0, len(old), _SWEPT_AT_ONCE):
            some = old[start : start + _SWEPT_AT_ONCE]
            for name in set(some) - await self._queue.parts_in_use(some):
                await self._contents.delete(name)

    def _leave(self, name: str) -> None:
        self._assembled.pop(name, None)
        self._missing.pop(name, None)

    async def _step(self, name: str) -> bool:
        """Take a batch one state further; whether that was its last one."""
        batch = await self._queue.read(name)
        if batch.outcome is not None and batch.status in ("finalizing", "cancelling"):
            await self._finish(batch, batch.outcome)
            return True
        if stop_of(batch, self._clock()) is not None:
            await self._queue.close(batch, self.holder, "expired")
            return False
        if batch.status == "validating":
            await self._validate(batch)
            return False
        if batch.status == "in_progress":
            await self._answer(batch)
            return False
        return True

    async def _validate(self, batch: Batch) -> None:
        try:
            owner = await self._owner(batch.account_id, batch.key_id)
            limit = self.rules.enqueued_tokens(owner)
            checked = await self._check(batch, owner)
        except InvalidInput as invalid:
            await self._queue.fail(batch, self.holder, invalid.problems)
            return
        except ObjectNotFound:
            problem = Problem("invalid_file", "The input file has no content any more.")
            await self._queue.fail(batch, self.holder, [problem])
            return
        except OMAiError as error:
            if error.status >= 500:  # ours, not the input's
                raise
            problem = Problem(error.code or "invalid_batch", error.message)
            await self._queue.fail(batch, self.holder, [problem])
            return
        refused = await self._queue.begin(batch, self.holder, checked, limit)
        if refused is not None:
            await self._queue.fail(batch, self.holder, [refused])

    async def _check(self, batch: Batch, owner: Principal) -> CheckedInput:
        contents, resolve = self._contents, self.rules.resolver(batch, owner)

        def check() -> CheckedInput:
            opened = contents.location(batch.input_file_id).open_input()
            with io.BufferedReader(opened, _READ_BYTES) as stream:
                return check_input(stream, batch.endpoint, resolve, self.rules.longest)

        return await contents.run(check)

    async def _answer(self, batch: Batch) -> None:
        """Have the units answered that are not yet, and close the batch after the last one.

        Without its input, which is waited for a while, it has failed. Raises Overloaded where no
        unit could be answered, ObjectNotFound while the input is missing.
        """
        pending = [unit for unit in await self._queue.units(batch.id) if unit.part is None]
        if not pending:
            await self._queue.close(batch, self.holder, "completed")
            return
        if await self._input_is_gone(batch):
            await self._queue.close(batch, self.holder, "failed")
            return
        running = asyncio.create_task(self._in_turn(batch, pending))
        watch = Watch(self._looks, batch.id, self._poll_s, self._to_the_next)
        try:
            async with watch:
                await asyncio.wait({watch.stopped, running}, return_when=asyncio.FIRST_COMPLETED)
                was_stopped = watch.stopped.done()
                if was_stopped:
                    watch.stopped.result()  # it has failed to look, unless the batch was stopped
            if was_stopped:  # workers look for themselves, and commit what they have
                await asyncio.wait({running}, timeout=self._grace_s)
            if running.done():
                running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        left = [unit for unit in await self._queue.units(batch.id) if unit.part is None]
        if len(left) == len(pending) and not was_stopped:
            raise Overloaded("no unit could be answered")

    async def _input_is_gone(self, batch: Batch) -> bool:
        """Whether the input is given up. Raises ObjectNotFound until then."""
        try:
            content = await self._contents.open(batch.input_file_id)
        except ObjectNotFound:
            since_s = self._missing.setdefault(batch.id, self._clock())
            if self._clock() - since_s > INPUT_MISSED_S:
                return True
            raise
        await content.close()
        self._missing.pop(batch.id, None)
        return False

    async def _to_the_next(self, period_s: float) -> None:
        """Sleep until a period ends, which does so for all batches at once: they look together."""
        await self._sleep(period_s - self._clock() % period_s)

    async def _in_turn(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
        async with self._turns.turn(batch.account_id):
            if stop_of(await self._queue.read(batch.id), self._clock()) is None:
                await self._executor.run(batch, units)

    async def _finish(self, batch: Batch, outcome: BatchOutcome) -> None:
        made_s, assembled = self._assembled.get(batch.id, (0.0, None))
        if assembled is None or self._clock() - made_s > _KEPT_S:
            made_s, units = self._clock(), await self._queue.units(batch.id)
            assembled = await assemble(self._contents, batch, outcome, units, self._clock)
            self._assembled[batch.id] = made_s, assembled
        await self._queue.finish(batch, self.holder, outcome, assembled)
