"""A simulator of one chat model's replicas: they start, batch continuously, and end.

Replicas take in requests until their batch is full and queue the others; each step gives every
sequence of a batch a token and takes `fixed_s + each_s * batch` seconds. Requests go where a router
sends them, Serve's own or this platform's, and wait before replicas where there is none. A replica
is paid from being asked for to the end of its last request. What an autoscaler sees is what
replicas reported last: each once a second, at a moment of its own.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from omai_ray.autoscaling.load import ReplicaLoad
from omai_ray.autoscaling.policy import Snapshot
from omai_ray.routing.prefixes import PrefixAffinity

STEP_S = 0.5
REPORT_S = 1.0


@dataclass(frozen=True)
class Model:
    """A replica's properties, and what requests are like.

    tokens: the mean length of an answer, drawn from a log-normal distribution of standard deviation
    `dispersion` times as large.
    """

    batch: int = 16
    fixed_s: float = 0.020
    each_s: float = 0.001
    startup_s: float = 30.0
    tokens: float = 300.0
    dispersion: float = 1.0

    @property
    def full_tokens_per_s(self) -> float:
        """What a replica with a full batch does."""
        return self.batch / (self.fixed_s + self.each_s * self.batch)


@dataclass(frozen=True, slots=True)
class Request:
    """When a request comes, and how many tokens its answer has."""

    at_s: float
    tokens: float


def requests_of(rates: list[float], model: Model, rng: random.Random) -> list[Request]:
    """Draw a Poisson stream. rates: requests a second, for each second."""
    sigma = math.sqrt(math.log(1 + model.dispersion**2))
    mu = math.log(model.tokens) - sigma**2 / 2
    requests = []
    for second, rate in enumerate(rates):
        at = rng.expovariate(rate) if rate > 0 else 1.0
        while at < 1.0:
            tokens = max(1.0, round(rng.lognormvariate(mu, sigma)))
            requests.append(Request(second + at, tokens))
            at += rng.expovariate(rate)
    return requests


class Replica:
    """One replica; `advance` takes it to a time."""

    def __init__(self, model: Model, asked_s: float, name: str) -> None:
        self._model = model
        self.name = name
        self.ready_s = asked_s + model.startup_s
        self.ending = False
        self.now_s = asked_s
        self.queue: deque[Request] = deque()
        self.running: list[float] = []  # progress at which each ends, a heap
        self._progress = 0.0  # tokens that a sequence in the batch all along would have
        self._starts: dict[float, float] = {}
        self.waits: list[tuple[Request, float]] = []
        self._running_s = self._done = 0.0
        self._asked = self.ended = 0
        self._ended_tokens = 0.0

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self.running) + len(self.queue)

    def take(self, request: Request) -> None:
        """Queue a request."""
        self.queue.append(request)
        self._asked += 1
        self._admit()

    def advance(self, until_s: float) -> None:
        """Work until then."""
        while self.running:
            token_s = self._model.fixed_s + self._model.each_s * len(self.running)
            ends_s = self.now_s + (self.running[0] - self._progress) * token_s
            stop_s = min(ends_s, until_s)
            self._running_s += len(self.running) * (stop_s - self.now_s)
            self._done += len(self.running) * (stop_s - self.now_s) / token_s
            self._progress += (stop_s - self.now_s) / token_s
            self.now_s = stop_s
            if ends_s > until_s:
                return
            self._progress = end = heapq.heappop(self.running)
            self.ended += 1
            self._ended_tokens += end - self._starts.pop(end)
            self._admit()
        self.now_s = until_s

    def report(self) -> ReplicaLoad:
        """Return what it would tell the policy."""
        return ReplicaLoad(
            self.now_s,
            queued=len(self.queue),
            running_s=self._running_s,
            asked=self._asked,
            done_tokens=self._done,
            ended=self.ended,
            ended_tokens=self._ended_tokens,
        )

    def _admit(self) -> None:
        while self.queue and len(self.running) < self._model.batch:
            request = self.queue.popleft()
            self.waits.append((request, max(0.0, self.now_s - request.at_s)))
            end = self._progress + request.tokens
            while end in self._starts:
                end += 1e-6
            self._starts[end] = self._progress
            heapq.heappush(self.running, end)


Autoscaler = Callable[[Snapshot], int]
Router = Callable[[list[Replica]], Replica]


def two_choices(seed: int = 0) -> Router:
    """Return Serve's own router: the less loaded of two replicas drawn at random."""
    rng = random.Random(seed)

    def choose(replicas: list[Replica]) -> Replica:
        one, other = rng.choice(replicas), rng.choice(replicas)
        return one if one.load <= other.load else other

    return choose


def platforms_router(model: Model, ingresses: int = 1, seed: int = 0) -> Router:
    """Return this platform's router for chat, where no two prompts begin alike.

    Requests come to one of the ingress replicas. Each is told what a replica has when it sends
    something there, and from then on hears of its own requests' ends alone.
    """
    rng = random.Random(seed)
    affinity = PrefixAffinity(max(model.batch // 4, 1), alone=ingresses == 1)
    told: list[dict[str, tuple[int, int]]] = [{} for _ in range(ingresses)]

    def choose(replicas: list[Replica]) -> Replica:
        known = rng.choice(told)
        ongoing = {}
        for replica in replicas:
            load, ended = known.get(replica.name, (0, replica.ended))
            ongoing[replica.name] = max(0, load - (replica.ended - ended) // ingresses)
        best = affinity.rank(ongoing, (), rng.randbytes(8), begins=True)[0]
        chosen = next(replica for replica in replicas if replica.name == best)
        known[best] = chosen.load + 1, chosen.ended
        return chosen

    return choose


@dataclass
class Outcome:
    """What came of a run. replicas, paid: by the second, those asked for and those paid for."""

    model: Model
    waits: list[tuple[Request, float]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    paid: list[int] = field(default_factory=list)

    @property
    def replica_hours(self) -> float:
        """What was paid for."""
        return sum(self.paid) * STEP_S / 3600

    def in_target(self, wait_s: float) -> float:
        """Return the share of requests that began to be answered in time."""
        if not self.waits:
            return 1.0
        return sum(wait <= wait_s for _, wait in self.waits) / len(self.waits)


def simulate(
    requests: list[Request],
    model: Model,
    decide: Autoscaler,
    route: Router,
    *,
    seconds: float,
    initial: int = 1,
) -> Outcome:
    """Run requests through replicas that `decide` asks for, once a second."""
    outcome = Outcome(model)
    names = map(str, itertools.count())
    replicas = [Replica(model, -model.startup_s, next(names)) for _ in range(initial)]
    for replica in replicas:
        replica.now_s = 0.0
    unassigned: deque[Request] = deque()
    reports: dict[Replica, ReplicaLoad] = {}
    ongoing = waiting = 0.0
    target, coming, step = initial, 0, 0
    while (now := step * STEP_S) < seconds or any(r.load for r in replicas) or unassigned:
        serving = [r for r in replicas if r.ready_s <= now and not r.ending]
        while coming < len(requests) and requests[coming].at_s < now:
            unassigned.append(requests[coming])
            coming += 1
        while serving and unassigned:
            route(serving).take(unassigned.popleft())
        for number, replica in enumerate(serving):
            if (step + number) % round(REPORT_S / STEP_S) == 0:
                reports[replica] = replica.report()
        if step % round(1.0 / STEP_S) == 0 and now < seconds:
            loads = {r.name: reports[r] for r in serving if r in reports}
            target = decide(Snapshot(now, len(serving), target, ongoing, waiting, loads))
            _end_some(replicas, target, now)
            while sum(not r.ending for r in replicas) < target:
                replicas.append(Replica(model, now, next(names)))
            # Serve's counts, too, are a second old when they are used.
            ongoing = float(len(unassigned) + sum(r.load for r in replicas))
            waiting = float(len(unassigned))
        outcome.asked.append(target)
        outcome.paid.append(len(replicas))
        for replica in replicas:
            if replica.ready_s <= now:
                replica.advance(now + STEP_S)
            else:
                replica.now_s = now + STEP_S
        for replica in [r for r in replicas if r.ending and not r.load]:
            replicas.remove(replica)
            outcome.waits += replica.waits
        step += 1
    for replica in replicas:
        outcome.waits += replica.waits
    return outcome


def _end_some(replicas: list[Replica], target: int, now: float) -> None:
    """End those above the target that start, or have the least to do."""
    alive = [r for r in replicas if not r.ending]
    least_busy = sorted(alive, key=lambda replica: (replica.ready_s <= now, replica.load))
    for replica in least_busy[: max(0, len(alive) - target)]:
        replica.ending = True
