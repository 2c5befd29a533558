"""The chat engine that batches continuously, whatever library computes its steps.

One owned thread plans a step, runs it and hands out its tokens. Requests join at the next step and
leave at the end of any.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.checks import check_request, check_room
from omai_ray.engines.chat.grammar import Constraint, Grammars
from omai_ray.engines.chat.protocol import (
    EngineFinish,
    EngineStats,
    GenerationRequest,
    StepOutput,
    TokenLogprobs,
)
from omai_ray.engines.chat.sampler import Sampler, draw
from omai_ray.engines.chat.scheduler import Copy, Piece, Places, Scheduler, Sequence
from omai_ray.engines.checkpoint import check_weights
from omai_ray.engines.heartbeat import Heartbeat
from omai_ray.errors import ModelNotFound, ServerError
from omai_ray.priority import PRIORITIES, GaveWay, Priority, give_way_to_callers
from omai_ray.text.tokenizer import TextTokenizer, longest_context

_SWITCH_S = 0.0005
_log = logging.getLogger(__name__)


class Runner(Protocol):
    """Computes steps, and holds the keys and values of all sequences.

    Built on the engine's thread from a ModelSpec, its directory and its context; raises
    CheckpointError or ConfigError where the model cannot be served.
    """

    vocab_size: int
    stop_token_ids: frozenset[int]
    step_tokens: int  # the most that a step computes, unless more sequences run
    # Called between the layers of a step, by runners that can; what it raises ends the step.
    between_layers: Callable[[], None] | None

    @property
    def places(self) -> Places:
        """Where it can hold them."""

    def copy(self, copies: list[Copy]) -> None:
        """Copy keys and values, in order."""

    def run(self, pieces: list[Piece]) -> Tensor:
        """Compute pieces, in this order.

        Returns float32 [N, V]: the logits after each of the N pieces that are the last of their
        sequence, in order. The next call may overwrite them.
        """


class BatchingEngine:
    """Implements ChatEngine with the runner of the model's entry.

    Raises CheckpointError or ConfigError where the model cannot be used.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._directory = locate(spec)
        check_weights(spec, self._directory)
        tokenizer = TextTokenizer(self._directory)
        self.context = longest_context(self._directory, tokenizer, spec.context)
        self._lock = threading.Condition()
        # What callers ask for, taken up by the thread between steps; the lock guards both.
        self._submitted: list[_Task] = []
        self._cancelled: list[_Task] = []
        self._somebody_came = False  # online, since the thread last looked
        self._gives_way = False
        self._tasks: dict[str, _Task] = {}
        self._draining = False
        self._running: dict[Sequence, _Task] = {}
        self._deadlines: dict[_Task, float] = {}
        self._stats = EngineStats(0, 0)
        self._waiting: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._heartbeat = Heartbeat(spec.step_timeout_s)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, which loads the weights and runs them; return once it has loaded."""
        loaded: Future[None] = Future()
        # The thread that feeds the device must not wait for the interpreter for Python's usual
        # 5 ms, which is as long as several steps.
        sys.setswitchinterval(_SWITCH_S)
        self._thread = threading.Thread(
            target=self._run, args=(loaded,), name="chat-engine", daemon=True
        )
        self._thread.start()
        loaded.result()

    async def drain(self) -> None:
        """Finish every accepted request, then end the thread."""
        with self._lock:
            self._draining = True
            self._lock.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        """Yield the request's tokens as they are sampled.

        Raises InvalidRequest, ContextTooLong or ModelNotFound for what cannot be run, a grammar and
        an adapter included, and Overloaded when the queue is full or the engine is draining.
        Leaving the iterator early cancels the request.
        """
        check_request(request, self.vocab_size, self.context)
        if request.adapter and request.adapter not in self._spec.adapters:
            raise ModelNotFound(f"The model has no adapter '{request.adapter}'.", param="model")
        constraint = None
        if request.grammar is not None:
            constraint = await asyncio.to_thread(self._grammars.start, request.grammar)
        task = _Task(request, constraint, self.context)
        self._submit(task)
        try:
            while True:
                output = await task.receive()
                yield output
                if output.finish is not None:
                    return
        finally:
            with self._lock:
                if self._tasks.get(request.request_id) is task:
                    del self._tasks[request.request_id]
                self._cancel(task)

    def abort(self, request_id: str) -> None:
        """Cancel a request, if it is still there: its iterator ends with finish `abort`."""
        with self._lock:
            task = self._tasks.get(request_id)
            if task is not None:
                self._cancel(task)

    def stats(self) -> EngineStats:
        """Return what runs and what waits."""
        with self._lock:
            return replace(self._stats, waiting=self._stats.waiting + len(self._submitted))

    def check_health(self) -> None:
        """Raise ServerError where the thread has ended, or is wedged: then all requests end too."""
        if self._thread is None or not self._thread.is_alive():
            raise ServerError("the chat engine's thread is not running")
        try:
            self._heartbeat.check()
        except ServerError:
            self._give_up("engine wedged")
            raise

    def _submit(self, task: _Task) -> None:
        with self._lock:
            priority = task.request.priority
            waiting = self._waiting[priority]
            waiting += sum(other.request.priority == priority for other in self._submitted)
            check_room(waiting, self._spec.max_queued_requests, draining=self._draining)
            self._submitted.append(task)
            self._somebody_came |= priority == "online"
            self._heartbeat.begin()
            self._tasks[task.request.request_id] = task
            self._lock.notify()

    def _cancel(self, task: _Task) -> None:
        """Have a task end, with the lock held: at once where the thread has not taken it up."""
        if task in self._submitted:
            self._submitted.remove(task)
            _send([(task, StepOutput([], "abort"))])
        else:
            self._cancelled.append(task)
            self._lock.notify()

    def _run(self, loaded: Future[None]) -> None:
        try:
            if not self._spec.num_gpus:
                give_way_to_callers()
            self._load()
        except BaseException as error:  # handed to the one who starts the engine
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while self._take_up():
                self._end_overdue()
                _send(self._next())
        except BaseException:  # whoever waits must hear of it; health checks see the thread ended
            _log.exception("the chat engine has ended")
            self._give_up("engine ended")
            raise

    def _give_up(self, error: str) -> None:
        """Take no more requests, and end those that are here, whatever the thread does."""
        with self._lock:
            self._draining = True
            tasks = [*self._running.values(), *self._submitted]
        _send([(task, StepOutput([], "error", error=error)) for task in tasks])

    def _load(self) -> None:
        """Load the model on this very thread.

        OpenMP keeps a pool for each thread that has computed; where the pools together have more
        threads than there are CPUs, none of them waits actively any more, and a small step takes
        twice as long (libgomp's throttled spinning).
        """
        self._runner = _runner(self._spec.engine)(self._spec, self._directory, self.context)
        self.vocab_size = self._runner.vocab_size
        self.stop_token_ids = self._runner.stop_token_ids
        self._grammars = Grammars(
            self._directory / "tokenizer.json", self.vocab_size, self.stop_token_ids
        )
        self._runner.between_layers = self._give_way
        self._scheduler = Scheduler(
            self._runner.places, self._spec.max_running_requests, self._runner.step_tokens
        )

    def _next(self) -> list[tuple[_Task, StepOutput]]:
        """Plan and run a step; what it fails for ends, and the rest goes on."""
        plan = self._scheduler.plan()
        now = time.monotonic()
        for sequence in plan.admitted:
            self._running[sequence].begin(now)
        try:
            self._runner.copy(plan.copies)
        except Exception as error:  # the pasts of any could be wrong now
            _log.exception("keys and values could not be copied")
            running = [self._running[sequence] for sequence in self._scheduler.running]
            ended = [(task, self._end(task, "error", type(error).__name__)) for task in running]
            self._scheduler.forget()
            return ended
        self._gives_way = plan.gives_way
        try:
            return self._step(plan.pieces) if plan.pieces else []
        except GaveWay:
            return []
        except Exception:  # found out below whose fault it is
            _log.exception("a chat step failed")
            self._gives_way = False
            return self._one_by_one(plan.pieces)

    def _give_way(self) -> None:
        if self._gives_way and self._somebody_came:
            raise GaveWay

    def _take_up(self) -> bool:
        """Wait for work, and take up what callers asked for; False once drained."""
        with self._lock:
            if not (self._submitted or self._running):
                self._heartbeat.rest()
            if not self._running:
                self._count()  # else what ended would be counted for as long as nothing comes
            self._lock.wait_for(
                lambda: self._submitted or self._cancelled or self._running or self._draining
            )
            self._heartbeat.beat()
            self._somebody_came = False
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
            for task in submitted:
                self._running[task.sequence] = task
                if task.request.deadline is not None:
                    self._deadlines[task] = task.request.deadline
                self._scheduler.add(task.sequence)
            _send([(t, self._end(t, "abort")) for t in cancelled if t.sequence in self._running])
            self._count()
            return bool(self._running) or not self._draining

    def _count(self) -> None:
        scheduler = self._scheduler
        self._waiting = {priority: scheduler.waiting(priority) for priority in PRIORITIES}
        self._stats = EngineStats(
            len(scheduler.running),
            sum(self._waiting.values()),
            scheduler.preemptions,
            scheduler.prompt_tokens,
            scheduler.cached_tokens,
            scheduler.use,
        )

    def _end(self, task: _Task, finish: EngineFinish, error: str | None = None) -> StepOutput:
        del self._running[task.sequence]
        self._deadlines.pop(task, None)
        self._scheduler.remove(task.sequence)
        return StepOutput([], finish, error=error)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        overdue = [task for task, deadline in self._deadlines.items() if deadline <= now]
        _send([(task, self._end(task, "error", "deadline exceeded")) for task in overdue])

    def _step(self, pieces: list[Piece]) -> list[tuple[_Task, StepOutput]]:
        logits = self._runner.run(pieces)
        drawing = [self._running[piece.sequence] for piece in pieces if piece.last]
        drawn = draw(logits, [task.sampler for task in drawing]) if drawing else []
        self._scheduler.commit(pieces)
        return [
            (task, self._advance(task, token, logprobs))
            for task, (token, logprobs) in zip(drawing, drawn, strict=True)
        ]

    def _one_by_one(self, pieces: list[Piece]) -> list[tuple[_Task, StepOutput]]:
        """Run each piece of a step that failed alone, and end the sequences that fail so too."""
        outputs = []
        for piece in pieces:
            try:
                outputs += self._step([piece])
            except Exception as error:  # handed to the request it belongs to
                task = self._running[piece.sequence]
                kind = type(error).__name__
                task.context.run(_log.error, "a request failed in a step of its own: %s", kind)
                outputs.append((task, self._end(task, "error", kind)))
        return outputs

    def _advance(self, task: _Task, token: int, logprobs: TokenLogprobs | None) -> StepOutput:
        sequence = task.sequence
        sequence.tokens.append(token)
        finish: EngineFinish | None = None
        if token in self.stop_token_ids or task.sampler.complete:
            finish = "stop"
        elif len(sequence.tokens) >= task.longest:
            finish = "length"
        if finish is not None:
            self._end(task, finish)
        reported = None if logprobs is None else [logprobs]
        is_first = len(sequence.tokens) == len(sequence.request.prompt_ids) + 1
        queued_s = task.queued_s if is_first else None
        return StepOutput([token], finish, reported, None, sequence.cached or 0, queued_s)


def _runner(engine: str) -> Callable[[ModelSpec, Path, int], Runner]:
    if engine == "llama-cpp":
        from omai_ray.engines.chat.llama_cpp_runner import LlamaCppRunner

        return LlamaCppRunner
    from omai_ray.engines.chat.transformers_runner import TransformersRunner

    return TransformersRunner


class _Task:
    """A request with its caller: outputs go from the engine's thread to the caller's loop."""

    def __init__(
        self, request: GenerationRequest, constraint: Constraint | None, context: int
    ) -> None:
        self.request = request
        self.longest = min(context, len(request.prompt_ids) + request.max_new_tokens)
        self.sequence = Sequence(request, list(request.prompt_ids))
        self.sampler = Sampler(request.sampling, request.prompt_ids, constraint)
        self.loop = asyncio.get_running_loop()
        self.context = copy_context()  # with which the thread logs: the request's id is in it
        self.queued_s: float | None = None
        self._arrived = time.monotonic()
        self._outputs: deque[StepOutput] = deque()
        self._wanted: asyncio.Future[None] | None = None

    def begin(self, now: float) -> None:
        """Note when it is first worked on."""
        if self.queued_s is None:
            self.queued_s = now - self._arrived

    def deliver(self, output: StepOutput) -> None:
        """Hand over an output, in the caller's loop."""
        self._outputs.append(output)
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    async def receive(self) -> StepOutput:
        """Wait for the next output; an asyncio.Queue takes thrice as long."""
        if not self._outputs:
            self._wanted = self.loop.create_future()
            await self._wanted
        return self._outputs.popleft()


def _send(outputs: Iterable[tuple[_Task, StepOutput]]) -> None:
    """Deliver outputs to their callers' loops, waking each loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Task, StepOutput]]] = {}
    for task, output in outputs:
        by_loop.setdefault(task.loop, []).append((task, output))
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, own)
        except RuntimeError:  # a loop that is gone needs nothing any more
            _log.debug("a caller's loop has closed")


def _deliver(outputs: list[tuple[_Task, StepOutput]]) -> None:
    for task, output in outputs:
        task.deliver(output)
