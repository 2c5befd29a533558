"""The policy in the simulator that the benchmark uses, its clock being the simulator's."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise

import pytest

from benchmarks.autoscaling_simulator import (
    Model,
    Outcome,
    Request,
    platforms_router,
    requests_of,
    simulate,
)
from benchmarks.autoscaling_traces import flash_crowd
from omai_ray.autoscaling.load import ReplicaLoad, ReplicaMeter
from omai_ray.autoscaling.policy import ReplicaPolicy, Snapshot, Targets, Work, late_share

MODEL = Model()
REQUESTS_PER_S = MODEL.full_tokens_per_s / MODEL.tokens  # that fill one replica


def run(
    replicas: Callable[[int], float],
    seconds: int,
    *,
    initial: int = 1,
    targets: Targets | None = None,
) -> Outcome:
    """Simulate a load given in full replicas, by the second."""
    rates = [replicas(second) * REQUESTS_PER_S for second in range(seconds)]
    requests = requests_of(rates, MODEL, random.Random(5))
    policy = ReplicaPolicy(targets or Targets(1, 50, MODEL.batch))
    route = platforms_router(MODEL)
    return simulate(requests, MODEL, policy.decide, route, seconds=seconds, initial=initial)


def asked(outcome: Outcome, since_s: float, until_s: float) -> list[int]:
    """Return the replicas asked for between two moments."""
    return outcome.asked[int(since_s * 2) : int(until_s * 2)]  # two entries a second


@pytest.mark.parametrize("times", [3, 5])
def test_a_step_of_the_load_is_answered_within_five_seconds(times: int) -> None:
    """More replicas are asked for so soon after the load has grown at once."""
    begin = 300
    outcome = run(lambda s: 4.0 * (times if s >= begin else 1), begin + 120, initial=6)
    before = max(asked(outcome, begin - 60, begin))
    assert max(asked(outcome, begin, begin + 5)) >= before * 1.5
    assert 4 * times <= asked(outcome, begin + 60, begin + 61)[0] <= 4 * times * 1.6


def test_a_noisy_hour_makes_no_oscillation() -> None:
    """A load that only chance moves keeps its replicas within a few, and all answers in time."""
    outcome = run(lambda _: 12.0, 3600, initial=14)
    settled = asked(outcome, 120, 3600)
    assert max(settled) - min(settled) <= 4
    turns = reversals(settled)
    assert turns <= 30, turns
    assert outcome.in_target(5.0) >= 0.95


def reversals(replicas: list[int]) -> int:
    """Count the changes of direction."""
    changes = [b - a for a, b in pairwise(replicas) if a != b]
    return sum((a > 0) != (b > 0) for a, b in pairwise(changes))


@pytest.mark.parametrize("token_s", [0.002, 0.005, 0.02])
def test_replicas_go_when_nothing_comes_any_more(token_s: float) -> None:
    """Though it may come back: that is as unlikely where requests are long, and so but few."""
    model = Model(batch=2, fixed_s=token_s, each_s=token_s, startup_s=15, tokens=400)
    requests = [Request(1 + second, 400) for second in range(60)]
    policy = ReplicaPolicy(Targets(1, 3, model.batch, wait_s=0.5, scale_down_s=3))
    route = platforms_router(model)
    outcome = simulate(requests, model, policy.decide, route, seconds=1200, initial=1)
    assert 3 == max(outcome.asked)
    begun_s = max(request.at_s + wait for request, wait in outcome.waits)
    assert {1} == set(asked(outcome, begun_s + 60, begun_s + 120))


def test_a_crowd_is_met_within_the_target() -> None:
    """The recorded trace with a flash crowd: 95 % in time, and nearly no replica to spare."""
    rates = flash_crowd(2400, 8 * REQUESTS_PER_S, random.Random(3))
    requests = requests_of(rates, MODEL, random.Random(4))
    policy = ReplicaPolicy(Targets(1, 50, MODEL.batch))
    route = platforms_router(MODEL)
    outcome = simulate(requests, MODEL, policy.decide, route, seconds=2400, initial=9)
    work = sum(request.tokens for request in requests) / MODEL.full_tokens_per_s / 3600
    assert outcome.in_target(5.0) >= 0.95
    assert outcome.replica_hours <= 1.25 * work


def test_a_model_goes_to_zero_and_comes_back() -> None:
    """The last replica goes after the idle time, and the first request brings one at once."""
    targets = Targets(0, 4, MODEL.batch, idle_s=60)
    requests = [Request(10.2, 50), Request(300.2, 50)]
    policy = ReplicaPolicy(targets)
    route = platforms_router(MODEL)
    outcome = simulate(requests, MODEL, waking(policy), route, seconds=500, initial=1)
    assert {1} == set(asked(outcome, 0, 60))
    assert {0} == set(asked(outcome, 90, 300))
    assert {1} == set(asked(outcome, 302, 360))
    assert {0} == set(asked(outcome, 420, 500))
    assert 2 == len(outcome.waits)


def waking(policy: ReplicaPolicy) -> Callable[[Snapshot], int]:
    """Wake as Serve does: it asks no policy as long as no replica serves and a request waits."""

    def decide(seen: Snapshot) -> int:
        if seen.running == 0 and seen.ongoing_requests > 0:
            return max(1, seen.target)
        return policy.decide(seen)

    return decide


def test_replicas_stay_within_their_bounds() -> None:
    """However much or little there is to do."""
    targets = Targets(2, 5, MODEL.batch)
    flooded = run(lambda _: 20.0, 120, initial=2, targets=targets)
    assert 5 == max(flooded.asked)
    calm = run(lambda _: 0.05, 300, initial=5, targets=targets)
    assert 2 == min(calm.asked) == calm.asked[-1]


def test_one_replica_stays_as_long_as_requests_run() -> None:
    """A long answer is no idleness, where the least is none."""
    policy = ReplicaPolicy(Targets(0, 3, 4, idle_s=10))
    load = ReplicaLoad
    decisions = {
        policy.decide(Snapshot(now, 1, 1, 1.0, 0.0, {"r": load(now, running_s=now)}))
        for now in map(float, range(100))
    }
    assert {1} == decisions


def test_a_batch_keeps_a_replica_and_asks_for_no_other() -> None:
    """However much of it there is, before any online request has been seen and after."""
    policy = ReplicaPolicy(Targets(0, 9, 4, idle_s=10))
    replica = ReplicaMeter(4, lambda: 0.0)
    with ExitStack() as batch:
        for _ in range(400):
            batch.enter_context(replica.request(1000, priority="batch"))
        decisions = {
            policy.decide(Snapshot(now, 1, 1, 400.0, 0.0, {"r": replica.load(now)}))
            for now in map(float, range(100))
        }
    assert {1} == decisions
    idle = [Snapshot(now, 1, 1, 0.0, 0.0, {"r": replica.load(now)}) for now in (150.0, 151.0)]
    assert [0, 0] == [policy.decide(seen) for seen in idle]


def test_requests_count_before_any_token_does() -> None:
    """A replica that has reported nothing yet is taken to be full with its targets' requests."""
    policy = ReplicaPolicy(Targets(1, 9, 4))
    assert 3 == policy.decide(Snapshot(0.0, 1, 1, 12.0, 0.0, {}))


def test_what_ran_before_the_policy_began_is_kept_for_a_while() -> None:
    """A policy that starts anew, knowing nothing, takes no replica away at once."""
    policy = ReplicaPolicy(Targets(1, 9, 4, scale_down_s=30))
    idle = {str(n): ReplicaLoad(0.0) for n in range(5)}
    assert 5 == policy.decide(Snapshot(0.0, 5, 5, 0.0, 0.0, idle))
    assert 5 == policy.decide(Snapshot(59.0, 5, 5, 0.0, 0.0, idle))
    assert 1 == policy.decide(Snapshot(61.0, 5, 5, 0.0, 0.0, idle))


def test_fewer_replicas_have_to_be_enough_for_as_long_as_asked() -> None:
    """A lull that is shorter takes none away."""
    lasting = [20.0 if second < 300 or second >= 380 else 4.0 for second in range(480)]
    kept = run(lasting.__getitem__, 480, initial=22, targets=Targets(1, 50, 16, scale_down_s=120))
    gone = run(lasting.__getitem__, 480, initial=22, targets=Targets(1, 50, 16))
    assert min(asked(kept, 300, 380)) >= 20 > 12 > min(asked(gone, 300, 380))


def test_the_same_load_known_for_certain_needs_fewer_replicas() -> None:
    """Rates that it may be count by their chance; a share of those above the capacity is late."""
    certain = Work((1000.0,), (1.0,), 300.0, 1000.0)
    unsure = Work((700.0, 1300.0), (0.5, 0.5), 300.0, 1000.0)
    assert 1000.0 == certain.mean == unsure.mean
    assert late_share(certain, 1200.0, 5.0) < 0.05 < late_share(unsure, 1200.0, 5.0)
    assert 1.0 == late_share(certain, 900.0, 5.0)


def test_late_work_is_less_with_room_with_even_arrivals_and_with_longer_waits() -> None:
    """As heavy traffic has it: exp(-2 (C - D) C w / v)."""
    work = Work((1000.0,), (1.0,), 300.0, 1000.0)
    late = late_share(work, 1100.0, 5.0)
    assert math.exp(-2 * 100 * 1100 * 5 / 300_000) == pytest.approx(late)
    assert late > late_share(work, 1200.0, 5.0)
    assert late > late_share(work, 1100.0, 10.0)
    assert late > late_share(Work((1000.0,), (1.0,), 200.0, 1000.0), 1100.0, 5.0)
