"""Requests from many callers, embedded together by one owned thread.

It starts at once when idle; what queued meanwhile forms the next step, so nobody waits for a
timer. A step is bounded in tokens, and every account that waits has a share of it, as has each of
its requests: neither thousands of requests of another account, nor one of thousands of inputs,
hold up a request of a single input.

What batches ask for has steps of its own, short ones, when nobody else waits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np

from omai_ray.catalog import STEP_TIMEOUT_S
from omai_ray.engines.embedding.engine import TokenEngine, Vectors
from omai_ray.engines.embedding.packing import Ids
from omai_ray.engines.heartbeat import Heartbeat
from omai_ray.errors import OMAiError, Overloaded, ServerError
from omai_ray.priority import PRIORITIES, GaveWay, Priority, Turns, give_way_to_callers, step_bound

_log = logging.getLogger(__name__)
_MOST_WAITS = 10_000


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """What a batcher does now, and has done since its start.

    running, waiting: requests, those that are partly done running. tokens, computed_tokens: of all
    steps, without and with padding.
    """

    running: int
    waiting: int
    steps: int
    tokens: int
    computed_tokens: int


@dataclass(slots=True, eq=False)
class _Request:
    """A caller's inputs. Those before `taken` are in a step or done; `left` are not done."""

    account: str
    inputs: list[Ids]
    vectors: Vectors
    left: int
    taken: int = 0
    future: Future[Vectors] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    context: Context = field(default_factory=copy_context)


_Share = tuple[_Request, int]  # one input of a request, by its index


class EmbeddingBatcher:
    """Feeds one engine from many callers.

    max_queued: requests that may wait, online and in batches each; one more is refused with
    Overloaded. step_timeout_s: a step that takes longer will not end.
    """

    def __init__(
        self, engine: TokenEngine, max_queued: int, step_timeout_s: float = STEP_TIMEOUT_S
    ) -> None:
        self._engine = engine
        self._max_queued = max_queued
        self._waiting: dict[Priority, deque[_Request]] = {name: deque() for name in PRIORITIES}
        self._turns = Turns()
        self._step: list[_Share] = []
        self._gives_way = False
        self._wedged = False
        self._changed = threading.Condition()
        self._heartbeat = Heartbeat(step_timeout_s)
        self._steps = self._running = 0
        self._waits: deque[float] = deque(maxlen=_MOST_WAITS)
        engine.between_layers = self._give_way
        self._thread = threading.Thread(target=self._run, name="embedding-engine", daemon=True)
        self._thread.start()

    async def embed(
        self, inputs: Sequence[Sequence[int]], account: str = "", priority: Priority = "online"
    ) -> Vectors:
        """Return float32 [N, D] for N inputs of token ids; errors as TokenEngine.embed_ids.

        account: whose turn it is, among those of the same priority.
        The inputs of a caller that is cancelled are dropped, those of a running step excepted.
        """
        arrays = self._engine.check(inputs)
        vectors = np.empty((len(arrays), self._engine.dimension), dtype=np.float32)
        if not arrays:
            return vectors
        request = _Request(account, arrays, vectors, len(arrays))
        with self._changed:
            if self._wedged:
                raise Overloaded("The model is restarting. Please try again later.")
            waiting = self._waiting[priority]
            if len(waiting) >= self._max_queued:
                raise Overloaded(
                    f"The model has {self._max_queued} requests waiting. Please try again later.",
                )
            waiting.append(request)
            self._heartbeat.begin()
            self._changed.notify()
        return await asyncio.wrap_future(request.future)

    def stats(self) -> BatcherStats:
        """Return what runs, what waits, and what was done."""
        with self._changed:
            waiting = sum(request.taken == 0 for request in self._all_waiting())
            running, steps = self._running, self._steps
        engine = self._engine
        return BatcherStats(running, waiting, steps, engine.tokens, engine.computed_tokens)

    def take_waits(self) -> list[float]:
        """Return how long online requests waited to be begun, in s: those since the last call."""
        with self._changed:
            waits = list(self._waits)
            self._waits.clear()
        return waits

    def check_health(self) -> None:
        """Raise ServerError where the thread has ended, or is wedged: then all requests end too."""
        if not self._thread.is_alive():
            raise ServerError("the embedding engine's thread is not running")
        try:
            self._heartbeat.check()
        except ServerError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Take no more requests, and end those that are here, whatever the thread does."""
        with self._changed:
            self._wedged = True
            requests = {id(request): request for request, _ in self._step}
            requests |= {id(request): request for request in self._all_waiting()}
        for request in requests.values():
            if _is_awaited(request):
                request.future.set_exception(
                    ServerError("The model could not embed the input. Please try again.")
                )

    def _run(self) -> None:
        if self._engine.on_cpu:
            give_way_to_callers()
        while True:
            with self._changed:
                if not self._is_wanted():
                    self._heartbeat.rest()
                self._changed.wait_for(self._is_wanted)
                self._step = self._next_step()
                self._running = len({id(request) for request, _ in self._step})
                self._steps += bool(self._step)
            try:
                if self._step:
                    self._embed(self._step)
            except GaveWay:
                self._put_back(self._step)
            with self._changed:
                self._running = 0

    def _all_waiting(self) -> Iterable[_Request]:
        return chain.from_iterable(self._waiting.values())

    def _is_wanted(self) -> bool:
        return any(self._waiting.values())

    def _next_step(self) -> list[_Share]:
        """Serve one class: batches where it is their turn, else who is online."""
        for name, requests in self._waiting.items():
            self._waiting[name] = deque(r for r in requests if not r.future.done())
        turn = self._turns.next(
            online=bool(self._waiting["online"]), batch=bool(self._waiting["batch"])
        )
        self._gives_way = turn == "batch" and not self._waiting["online"]
        return self._share_out(turn)

    def _give_way(self) -> None:
        if self._gives_way and self._waiting["online"]:
            raise GaveWay

    def _put_back(self, step: list[_Share]) -> None:
        """Let a batch's inputs wait again that were taken and not embedded."""
        first: dict[int, tuple[_Request, int]] = {}
        for request, index in step:
            first.setdefault(id(request), (request, index))
        with self._changed:
            waiting = self._waiting["batch"]
            for request, index in reversed(first.values()):
                if request.taken == len(request.inputs):  # else it waits still
                    waiting.appendleft(request)
                request.taken = index

    def _share_out(self, turn: Priority) -> list[_Share]:
        """Take turns among the accounts: an equal share of the step's tokens each, or one input.

        The requests of an account do so with its share. What the small ones leave goes to the
        others in another turn. A request whose inputs are all taken waits no longer; those that
        got nothing come first in the next step.
        """
        waiting = list(self._waiting[turn])
        step: list[_Share] = []
        room = step_bound(turn, self._engine.step_tokens)
        taken = True
        while waiting and taken:
            before = room
            share = room // len({request.account for request in waiting})
            for requests in _by_account(waiting):
                room = self._take(requests, step, room, share)
            taken = room < before
            waiting = [r for r in waiting if r.taken < len(r.inputs)]
        if turn == "online":
            now = time.monotonic()
            self._waits.extend(now - request.arrived for request, index in step if index == 0)
        served = {id(request) for request, _ in step}
        self._waiting[turn] = deque(sorted(waiting, key=lambda request: id(request) in served))
        return step

    @staticmethod
    def _take(requests: list[_Request], step: list[_Share], room: int, share: int) -> int:
        """Give one account its turn; return the room that is left in the step."""
        each = share // len(requests)
        spent = 0
        for request in requests:
            own = 0
            while request.taken < len(request.inputs):
                size = len(request.inputs[request.taken])
                too_much = (spent and spent + size > share) or (own and own + size > each)
                if (step and size > room) or too_much:
                    break
                step.append((request, request.taken))
                request.taken += 1
                own += size
                spent += size
                room -= size
        return room

    def _embed(self, step: list[_Share]) -> None:
        """Answer what a step completes; an input that fails alone fails its own request only."""
        self._heartbeat.beat()
        try:
            vectors = self._engine.embed_arrays([request.inputs[index] for request, index in step])
        except GaveWay:
            raise
        except Exception as error:  # handed to the caller it belongs to
            self._embed_failed(step, error)
            return
        for (request, index), vector in zip(step, vectors, strict=True):
            request.vectors[index] = vector
            request.left -= 1
            if request.left == 0 and _is_awaited(request):
                request.future.set_result(request.vectors)

    def _embed_failed(self, step: list[_Share], error: Exception) -> None:
        self._gives_way = False  # of a step that is halved, a part may be done
        if len(step) > 1:
            middle = len(step) // 2
            self._embed(step[:middle])
            self._embed(step[middle:])
            return
        ((request, _),) = step
        if not isinstance(error, OMAiError):
            log = partial(_log.error, "a batch could not be embedded", exc_info=error)
            request.context.run(log)
            error = ServerError("The model could not embed the input. Please try again.")
        if _is_awaited(request):
            request.future.set_exception(error)


def _by_account(waiting: list[_Request]) -> Iterable[list[_Request]]:
    """Return each account's requests, in the order in which they wait."""
    accounts: dict[str, list[_Request]] = {}
    for request in waiting:
        accounts.setdefault(request.account, []).append(request)
    return accounts.values()


def _is_awaited(request: _Request) -> bool:
    """Tell whether a caller still waits; it cannot leave any more once this was asked."""
    return not request.future.done() and request.future.set_running_or_notify_cancel()
