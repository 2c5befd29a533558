"""What a replica tells the policy: the work that it was given, and the work that it has done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from omai_ray.priority import PRIORITIES, Priority

# How much the newest request weighs in what share of a prompt is taken to be computed.
_NEWEST = 0.05


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """A replica's counters at one moment. Tokens are those computed; cached ones cost nothing.

    queued, queued_tokens: answers that have not begun, and their prompts' tokens. running_s: the
    integral over time of the answers that it owes, those beyond a full batch left out. The others
    count since its start: answers asked for and their prompts' tokens, tokens computed, answers
    that ended and their own tokens. batch: requests of batches that are here, of which nothing else
    counts: they keep a replica, and ask for no other.
    """

    at_s: float
    queued: float = 0.0
    queued_tokens: float = 0.0
    running_s: float = 0.0
    asked: float = 0.0
    asked_tokens: float = 0.0
    done_tokens: float = 0.0
    ended: float = 0.0
    ended_tokens: float = 0.0
    batch: float = 0.0


class ReplicaMeter:
    """Counts a replica's load, that of batches apart. Used as LoadMeter is."""

    def __init__(self, full_requests: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._meters: dict[Priority, LoadMeter] = {
            priority: LoadMeter(full_requests, clock) for priority in PRIORITIES
        }
        self._batch = 0

    @contextmanager
    def request(
        self, prompt_tokens: int, answers: int = 1, *, priority: Priority
    ) -> Iterator[Work]:
        """Count a request while it is here, as LoadMeter does."""
        self._batch += priority == "batch"
        try:
            with self._meters[priority].request(prompt_tokens, answers) as work:
                yield work
        finally:
            self._batch -= priority == "batch"

    def load(self, at_s: float) -> ReplicaLoad:
        """Return the counters. at_s: now, by the clock that the policy goes by."""
        return replace(self._meters["online"].load(at_s), batch=self._batch)


class LoadMeter:
    """Counts a replica's load. Used from one event loop.

    full_requests: so many at once fill a batch. clock: seconds that only grow.
    """

    def __init__(self, full_requests: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._full = full_requests
        self._clock = clock
        self._since = clock()
        self._ongoing = 0
        self._computed = 1.0  # share of the prompts' tokens
        self._queued = 0
        self._queued_tokens = 0.0
        self._running_s = 0.0
        self._asked = 0
        self._asked_tokens = 0.0
        self._done_tokens = 0.0
        self._ended = 0
        self._ended_tokens = 0

    @contextmanager
    def request(self, prompt_tokens: int, answers: int = 1) -> Iterator[Work]:
        """Count a request while it is here. prompt_tokens: of the prompt that its answers share."""
        work = Work(self, answers, prompt_tokens, prompt_tokens * self._computed)
        self._change(answers)
        self._asked += answers
        self._asked_tokens += work.expected_tokens
        self._queued += answers
        self._queued_tokens += work.expected_tokens
        try:
            yield work
        finally:
            self._change(-answers)
            if not work.begun:
                self._leave_queue(work)
            self._ended += answers
            self._ended_tokens += work.answered_tokens

    def load(self, at_s: float) -> ReplicaLoad:
        """Return the counters. at_s: now, by the clock that the policy goes by."""
        self._change(0)
        return ReplicaLoad(
            at_s,
            self._queued,
            max(0.0, self._queued_tokens),  # sums of floats do not return to 0 exactly
            self._running_s,
            self._asked,
            self._asked_tokens,
            self._done_tokens,
            self._ended,
            self._ended_tokens,
        )

    def _change(self, answers: int) -> None:
        now = self._clock()
        self._running_s += min(self._ongoing, self._full) * (now - self._since)
        self._since = now
        self._ongoing += answers

    def _leave_queue(self, work: Work) -> None:
        self._queued -= work.answers
        self._queued_tokens -= work.expected_tokens

    def _answer(self, work: Work, tokens: int, cached_tokens: int) -> None:
        if not work.begun:
            self._leave_queue(work)
            computed = max(0, work.prompt_tokens - cached_tokens)
            self._done_tokens += computed
            if work.prompt_tokens:
                self._computed += _NEWEST * (computed / work.prompt_tokens - self._computed)
        self._done_tokens += tokens


class Work:
    """One request at a replica."""

    def __init__(
        self, meter: LoadMeter, answers: int, prompt_tokens: int, expected_tokens: float
    ) -> None:
        self._meter = meter
        self.answers = answers
        self.prompt_tokens = prompt_tokens
        self.expected_tokens = expected_tokens
        self.begun = False
        self.answered_tokens = 0

    def answer(self, tokens: int, cached_tokens: int = 0) -> None:
        """Count tokens of its answers; at the first, its prompt has been computed too.

        cached_tokens: those of its prompt that had not to be.
        """
        self._meter._answer(self, tokens, cached_tokens)
        self.begun = True
        self.answered_tokens += tokens
