"""How many replicas a model should have now.

What arrives, in tokens a second, is set against what a full replica does, both as measured. On top
come the room that queueing theory asks for, and what has queued. More replicas are asked for at
once, fewer only when the last minutes would have done with fewer. See docs/autoscaling.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from omai_ray.autoscaling.demand import Demand
from omai_ray.autoscaling.load import ReplicaLoad
from omai_ray.autoscaling.throughput import ThroughputCurve

# Reports come once a second: what is older than this has been reported by every replica.
_REPORTED_S = 2
_FIRST_STARTUP_S = 10.0
_LONGEST_STARTUP_S = 900.0
# A backlog is to be gone within this many of the waits that are allowed.
_DRAIN_WAITS = 12.0
_HALF_LIFE_REQUESTS = 2000


@dataclass(frozen=True, slots=True)
class Targets:
    """What the policy aims at.

    full_requests: so many at once fill a replica. wait_s: within it an answer should begin, but
    for a share `late` of the requests. scale_down_s: how long fewer replicas must have been enough.
    idle_s: after how long without a request the last one goes, where min_replicas is 0.
    """

    min_replicas: int
    max_replicas: int
    full_requests: float
    wait_s: float = 5.0
    late: float = 0.05
    scale_down_s: float = 60.0
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known at one moment.

    running, target: replicas that serve, and that were asked for last. ongoing_requests: queued
    before replicas, or at them. unassigned_requests: those of them queued before replicas. loads:
    each running replica's last report, by its id.
    """

    now_s: float
    running: int
    target: int
    ongoing_requests: float
    unassigned_requests: float
    loads: Mapping[str, ReplicaLoad]


class ReplicaPolicy:
    """Decides again and again, for one model. Keeps what it has seen."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._curve = ThroughputCurve(targets.full_requests)
        self._demand = Demand()
        self._last: dict[str, ReplicaLoad] = {}
        self._arrivals: dict[int, list[float]] = {}  # second -> tokens, requests
        self._next_second: int | None = None
        self._answers = _Mean()
        self._prompts = _Mean()
        self._wanted: deque[tuple[float, int]] = deque()
        self._busy_at: float | None = None
        self._startup_s = _FIRST_STARTUP_S
        self._starting: tuple[float, int] | None = None  # since when, up to how many

    def decide(self, seen: Snapshot) -> int:
        """Return the replicas that there should be, within min and max."""
        targets = self._targets
        if self._busy_at is None:  # what was asked for before this policy began is kept for a while
            self._busy_at = seen.now_s
            self._wanted.append((seen.now_s, seen.target))
        self._time_startup(seen)
        self._take_in(seen)
        if seen.ongoing_requests > 0:
            self._busy_at = seen.now_s
        wanted = self._keep(seen.now_s, self._enough(seen))
        idle = seen.now_s - self._busy_at >= targets.idle_s
        least = targets.min_replicas if idle or not seen.running else max(1, targets.min_replicas)
        if not seen.running and not seen.ongoing_requests:
            wanted = seen.target  # asleep, or starting
        elif idle:
            wanted = min(wanted, 1) if targets.min_replicas else 0
        return min(max(wanted, least), targets.max_replicas)

    def _enough(self, seen: Snapshot) -> int:
        """Return the replicas that the present work asks for."""
        full = self._curve.full_tokens_per_s
        if full is None:  # nothing is known yet but how many requests there are
            online = seen.ongoing_requests - sum(load.batch for load in seen.loads.values())
            return math.ceil(max(0.0, online) / self._targets.full_requests)
        forecast = self._demand.forecast(self._answers.mean, self._startup_s)
        needed = room_for(
            forecast.tokens_per_s,
            forecast.variance,
            self._targets.wait_s,
            self._targets.late,
        )
        return math.ceil((needed + self._backlog(seen, full)) / full - 1e-9)

    def _backlog(self, seen: Snapshot, full: float) -> float:
        """Return the tokens/s that are needed beside what arrives, to answer what waits too long.

        Half of the allowed wait is a queue as it should be.
        """
        wait_s = self._targets.wait_s
        loads = seen.loads.values()
        queued = sum(load.queued_tokens + load.queued * self._answers.mean for load in loads)
        queued += seen.unassigned_requests * (self._prompts.mean + self._answers.mean)
        excess = queued - seen.running * full * wait_s / 2
        return max(0.0, excess) / (_DRAIN_WAITS * wait_s)

    def _keep(self, now_s: float, wanted: int) -> int:
        """Return the most that was wanted lately."""
        kept_s = max(self._targets.scale_down_s, self._startup_s)
        while self._wanted and self._wanted[-1][1] <= wanted:
            self._wanted.pop()
        self._wanted.append((now_s, wanted))
        while self._wanted[0][0] < now_s - kept_s:
            self._wanted.popleft()
        return self._wanted[0][1]

    def _take_in(self, seen: Snapshot) -> None:
        """Learn from what the replicas report since the last time."""
        first = self._next_second is None
        for name, load in seen.loads.items():
            last = self._last.get(name)
            if last is None:  # new replicas count from 0; old ones, from when they were first seen
                last = load if first else ReplicaLoad(load.at_s - 1.0)
            if load.at_s <= last.at_s:
                continue
            self._learn(last, load)
        self._last = dict(seen.loads)
        if self._next_second is None:
            if seen.loads:
                self._next_second = math.floor(seen.now_s)
            return
        while self._next_second + 1 + _REPORTED_S <= seen.now_s:
            tokens, requests = self._arrivals.pop(self._next_second, (0.0, 0.0))
            self._demand.add_second(tokens, requests, self._answers.mean)
            self._next_second += 1

    def _learn(self, last: ReplicaLoad, load: ReplicaLoad) -> None:
        """Take in what a replica was given and did between two reports."""
        seconds = load.at_s - last.at_s
        running_s = load.running_s - last.running_s
        self._curve.observe(seconds, running_s, load.done_tokens - last.done_tokens)
        asked = load.asked - last.asked
        prompt_tokens = load.asked_tokens - last.asked_tokens
        self._answers.add(load.ended - last.ended, load.ended_tokens - last.ended_tokens)
        self._prompts.add(asked, prompt_tokens)
        self._spread_out(last.at_s, load.at_s, prompt_tokens, asked)

    def _spread_out(self, since: float, until: float, tokens: float, requests: float) -> None:
        """Count arrivals into their seconds; those of a second gone by, into the next."""
        least = self._next_second if self._next_second is not None else math.floor(since)
        at = since
        while at < until:
            end = min(math.floor(at) + 1.0, until)
            share = (end - at) / (until - since)
            second = self._arrivals.setdefault(max(math.floor(at), least), [0.0, 0.0])
            second[0] += share * tokens
            second[1] += share * requests
            at = end

    def _time_startup(self, seen: Snapshot) -> None:
        """Learn how long replicas take from being asked for to serving."""
        if self._starting is not None:
            since, target = self._starting
            if seen.running >= target:
                took = min(seen.now_s - since, _LONGEST_STARTUP_S)
                self._startup_s += 0.5 * (took - self._startup_s)
                self._starting = None
            elif seen.target < target:
                self._starting = None
        if self._starting is None and seen.target > seen.running:
            self._starting = (seen.now_s, seen.target)


class _Mean:
    """Of the newest few hundred; 0 as long as there is none."""

    def __init__(self) -> None:
        self._count = 0.0
        self._sum = 0.0

    def add(self, count: float, total: float) -> None:
        """Add so many of this sum."""
        kept = 0.5 ** (count / _HALF_LIFE_REQUESTS)
        self._count = self._count * kept + count
        self._sum = self._sum * kept + total

    @property
    def mean(self) -> float:
        """Return their mean."""
        return self._sum / self._count if self._count else 0.0


def room_for(tokens_per_s: float, variance: float, wait_s: float, late: float) -> float:
    """Return the tokens/s that answer an arriving stream in time, but for a share `late` of it.

    variance: of the arriving tokens, in tokens^2/s. In heavy traffic the time that work waits is
    exponentially distributed (Kingman 1961): with capacity C and load D it exceeds w with
    probability exp(-2 (C - D) C w / variance). This is solved for C.
    """
    room = variance * math.log(1 / late) / (2 * wait_s)
    return (tokens_per_s + math.sqrt(tokens_per_s**2 + 4 * room)) / 2
