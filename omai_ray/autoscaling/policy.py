"""How many replicas a model should have now.

What may arrive, in tokens a second, is set against what a full replica does, both as measured: the
fewest replicas with which queueing theory expects few enough late answers, and more for what has
queued. More replicas are asked for at once, fewer when the last seconds would have done with fewer.
See docs/autoscaling.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from omai_ray.autoscaling.demand import Demand, Forecaster
from omai_ray.autoscaling.load import ReplicaLoad
from omai_ray.autoscaling.throughput import ThroughputCurve

# Reports come at least once a second: every replica has reported what is older than this.
REPORTED_S = 2
_FIRST_STARTUP_S = 10.0
_LONGEST_STARTUP_S = 900.0
# What was asked for before the policy began stays so long: those who end first had short answers.
_UNKNOWN_S = 60.0
# A backlog is to be gone within this many of the waits that are allowed, or a replica's start.
_DRAIN_WAITS = 6.0
# More replicas are asked for when, with those that there are, so many times the allowed share may
# be late; fewer, when with fewer no more than that share may be. Between the two none moves.
_TOO_LATE = 4.0
_HALF_LIFE = 2000  # requests, or seconds


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
    scale_down_s: float = 15.0
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


@dataclass(frozen=True, slots=True)
class Work:
    """What the rate of arriving work may be, in tokens/s, and the chance of each.

    burst_tokens: the variance of a second's work, in tokens^2, is so many times the rate. usual:
    the mean rate of the last half hour or so, in tokens/s.
    """

    rates: tuple[float, ...]
    chances: tuple[float, ...]
    burst_tokens: float
    usual: float

    @property
    def mean(self) -> float:
        """Return the rate that is to be expected."""
        return sum(map(float.__mul__, self.rates, self.chances))


class ReplicaPolicy:
    """Decides again and again, for one model. Keeps what it has seen."""

    def __init__(self, targets: Targets, demand: Forecaster | None = None) -> None:
        self._targets = targets
        self._curve = ThroughputCurve(targets.full_requests)
        self._demand = demand or Demand()
        self._last: dict[str, ReplicaLoad] = {}
        self._arrivals: dict[int, list[float]] = {}  # second -> tokens, requests
        self._next_second: int | None = None
        self._answers = _Mean()
        self._prompts = _Mean()
        self._usual = _Mean()  # requests of a second
        self._wanted: deque[tuple[float, int]] = deque()
        self._busy_at: float | None = None
        self._startup_s = _FIRST_STARTUP_S
        self._starting: tuple[float, int] | None = None  # since when, up to how many
        self._first = (0.0, 0)  # until when what was asked for before stays, and how much it was

    def decide(self, seen: Snapshot) -> int:
        """Return the replicas that there should be, within min and max."""
        targets = self._targets
        if self._busy_at is None:  # what was asked for before this policy began is kept for a while
            self._busy_at = seen.now_s
            self._first = (seen.now_s + max(_UNKNOWN_S, self._targets.scale_down_s), seen.target)
        self._time_startup(seen)
        self._take_in(seen)
        if seen.ongoing_requests > 0:
            self._busy_at = seen.now_s
        least, enough = self._enough(seen)
        if seen.now_s < self._first[0]:
            least = max(least, self._first[1])
        wanted = max(least, min(seen.target, self._keep(seen.now_s, enough)))
        idle = seen.now_s - self._busy_at >= targets.idle_s
        least = targets.min_replicas if idle or not seen.running else max(1, targets.min_replicas)
        if not seen.running and not seen.ongoing_requests:
            wanted = seen.target  # asleep, or starting
        elif idle:
            wanted = min(wanted, 1) if targets.min_replicas else 0
        return min(max(wanted, least), targets.max_replicas)

    def _enough(self, seen: Snapshot) -> tuple[int, int]:
        """Return the replicas that the present work asks for, and those that may be kept for it."""
        full = self._curve.full_tokens_per_s
        arriving = self._arriving()
        if full is None or arriving is None:  # nothing is known yet but how many requests there are
            online = seen.ongoing_requests - sum(load.batch for load in seen.loads.values())
            least = math.ceil(max(0.0, online) / self._targets.full_requests)
            return least, least
        backlog = self._backlog(seen, full)
        late = self._targets.late
        least = self._least(arriving, backlog, full, 1, _TOO_LATE * late)
        return least, self._least(arriving, backlog, full, least, late)

    def _least(self, arriving: Work, backlog: float, full: float, least: int, late: float) -> int:
        """Return the fewest replicas, not below `least`, with which such a share may be late."""
        least = max(least, math.ceil((arriving.mean + backlog) / full - 1e-9))
        while least < self._targets.max_replicas:
            if late_share(arriving, least * full - backlog, self._targets.wait_s) <= late:
                break
            least += 1
        return least

    def _arriving(self) -> Work | None:
        """Return the work that may arrive when replicas asked for now serve; None: not known."""
        answers = self._answers.mean
        tokens = self._prompts.mean + answers
        forecast = self._demand.forecast(self._startup_s)
        if forecast is None or not tokens:
            return None
        # Answers' lengths are not seen as they arrive; exponentially distributed ones add this.
        unseen = (answers / tokens) ** 2
        return Work(
            tuple(rate * tokens for rate in forecast.rates),
            forecast.chances,
            (forecast.dispersion + unseen) * tokens,
            self._usual.mean * tokens,
        )

    def _backlog(self, seen: Snapshot, full: float) -> float:
        """Return the tokens/s that are needed beside what arrives, to answer what waits too long.

        Half of the allowed wait is a queue as it should be.
        """
        wait_s = self._targets.wait_s
        loads = seen.loads.values()
        queued = sum(load.queued_tokens + load.queued * self._answers.mean for load in loads)
        queued += seen.unassigned_requests * (self._prompts.mean + self._answers.mean)
        excess = queued - seen.running * full * wait_s / 2
        return max(0.0, excess) / max(_DRAIN_WAITS * wait_s, self._startup_s)

    def _keep(self, now_s: float, wanted: int) -> int:
        """Return the most that was wanted lately."""
        kept_s = max(self._targets.scale_down_s, self._startup_s / 2)
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
        while self._next_second + 1 + REPORTED_S <= seen.now_s:
            tokens, requests = self._arrivals.pop(self._next_second, (0.0, 0.0))
            mean = self._prompts.mean + self._answers.mean
            work = tokens + requests * self._answers.mean
            sized = work / mean if mean else requests
            self._demand.add_second(sized)
            self._usual.add(1, sized)
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
    """Of the newest few thousand; 0 as long as there is none."""

    def __init__(self) -> None:
        self._count = 0.0
        self._sum = 0.0

    def add(self, count: float, total: float) -> None:
        """Add so many of this sum."""
        kept = 0.5 ** (count / _HALF_LIFE)
        self._count = self._count * kept + count
        self._sum = self._sum * kept + total

    @property
    def mean(self) -> float:
        """Return their mean."""
        return self._sum / self._count if self._count else 0.0


def late_share(arriving: Work, capacity: float, wait_s: float) -> float:
    """Return the work that is to be expected to wait longer than wait_s, as a share.

    Of what arrives, or of what usually does where that is more: when next to nothing comes, what
    might yet come would else be all of the work, and its chance, however small, not count.

    In heavy traffic the time that work waits is exponentially distributed (Kingman 1961): with
    capacity C and load D, and a variance v of the load, it exceeds w with probability
    exp(-2 (C - D) C w / v).
    """
    late = total = 0.0
    for rate, chance in zip(arriving.rates, arriving.chances, strict=True):
        total += rate * chance
        room = max(0.0, capacity - rate)
        exponent = 2 * room * capacity * wait_s / (arriving.burst_tokens * rate)
        late += rate * chance * math.exp(-exponent)
    return late / max(total, arriving.usual)
