"""What the replica policy costs, and what it keeps, beside Serve's own and the offline optimum.

`python benchmarks/autoscaling.py [--quick] [--seeds N]`: three seeded loads run through a simulator
of replicas (benchmarks/autoscaling_simulator.py) under our policy with its default targets, the
same for all loads, and our router in one ingress replica, as by default, and in several, which know
less; under our policy where it is told the rate of arrivals (the present one, or also that until
replicas asked for now would serve), which shows what learning it costs; under Serve's default
policy and router, the function that the installed Ray has, with the delays of its
AutoscalingConfig; and the fewest replica-hours that keep the target for one who knows the load, a
lower bound (benchmarks/autoscaling_optimum.py). Of those with several settings each load gets the
cheapest that keeps the target, or where none does the one that comes nearest. The target: 95 % of
the requests begin to be answered within 5 s. --seeds adds loads from other seeds: the median and
the worst of our policy over all of them. Writes a plot with --plot, and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import sys
from collections import deque
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ray  # noqa: E402
from ray.serve import autoscaling_policy as serve_policy  # noqa: E402
from ray.serve._private.common import DeploymentID  # noqa: E402
from ray.serve.config import AutoscalingConfig, AutoscalingContext  # noqa: E402

from benchmarks.autoscaling_optimum import optimum  # noqa: E402
from benchmarks.autoscaling_plot import Chart, write_plot  # noqa: E402
from benchmarks.autoscaling_simulator import (  # noqa: E402
    STEP_S,
    Autoscaler,
    Model,
    Request,
    Router,
    platforms_router,
    requests_of,
    simulate,
    two_choices,
)
from benchmarks.autoscaling_traces import (  # noqa: E402
    CLUMP_S,
    CLUMPS,
    EXPECTED,
    TRACES,
)
from omai_ray.autoscaling.demand import Forecast  # noqa: E402
from omai_ray.autoscaling.policy import (  # noqa: E402
    REPORTED_S,
    ReplicaPolicy,
    Snapshot,
    Targets,
)

MODEL = Model()
WAIT_S, LATE = 5.0, 0.05
MEAN_REPLICAS = 16.0
MOST_REPLICAS = 100
INGRESSES = 3  # of ours, beside a single one
SEED = 7
FIRST_SEED = 200  # of the others
# What our policy is told with the rate: the cheapest that keeps the target is chosen afterwards.
KNOWING_LATE = (0.05, 0.02, 0.01)
# Serve's own defaults first, its target being what keeps a full batch with some room.
SERVE_SETTINGS: tuple[dict[str, float], ...] = (
    {"target_ongoing_requests": 12.0},
    {
        "target_ongoing_requests": 12.0,
        "upscale_delay_s": 3.0,
        "downscale_delay_s": 60.0,
        "look_back_period_s": 10.0,
    },
    {
        "target_ongoing_requests": 13.5,
        "upscale_delay_s": 3.0,
        "downscale_delay_s": 60.0,
        "look_back_period_s": 10.0,
    },
    {
        "target_ongoing_requests": 15.0,
        "upscale_delay_s": 3.0,
        "downscale_delay_s": 120.0,
        "look_back_period_s": 20.0,
    },
)


class ServeDefault:
    """Serve's default policy as its controller calls it, with the simulator's time."""

    def __init__(self, settings: dict[str, float]) -> None:
        self._config = AutoscalingConfig(
            min_replicas=1, max_replicas=MOST_REPLICAS, metrics_interval_s=1.0, **settings
        )
        self._policy = serve_policy._apply_autoscaling_config(
            serve_policy.default_autoscaling_policy
        )
        self._ongoing: deque[tuple[float, float]] = deque()
        self._state: dict[str, Any] = {}

    def decide(self, seen: Snapshot) -> int:
        """Return the replicas for the mean of the requests over the look-back period."""
        self._ongoing.append((seen.now_s, seen.ongoing_requests))
        while self._ongoing[0][0] <= seen.now_s - self._config.look_back_period_s:
            self._ongoing.popleft()
        mean = sum(ongoing for _, ongoing in self._ongoing) / len(self._ongoing)
        context = AutoscalingContext(
            deployment_id=DeploymentID("model"),
            deployment_name="model",
            app_name="default",
            current_num_replicas=seen.running,
            target_num_replicas=seen.target,
            running_replicas=[],
            total_num_requests=mean,
            total_queued_requests=seen.unassigned_requests,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=1,
            capacity_adjusted_max_replicas=MOST_REPLICAS,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=seen.now_s,
            config=self._config,
        )
        with mock.patch.object(serve_policy, "time", mock.Mock(time=lambda: seen.now_s)):
            wanted, self._state = self._policy(context)
        return min(max(math.ceil(wanted), 1), MOST_REPLICAS)


class KnownRate:
    """A forecast by one who knows the rate, its clumps left out: now, or until replicas start."""

    def __init__(self, rates: list[float], dispersion: float, ahead: bool) -> None:
        self._rates = rates
        self._dispersion = dispersion
        self._ahead = ahead
        self._second = 0

    def add_second(self, requests: float) -> None:
        """Go on by a second."""
        self._second = min(self._second + 1, len(self._rates) - 1)

    def forecast(self, ahead_s: float) -> Forecast:
        """Return the one rate that it is, or the highest until then."""
        now = min(self._second + REPORTED_S, len(self._rates) - 1)
        until = now + math.ceil(ahead_s) if self._ahead else now
        return Forecast((max(self._rates[now : until + 1]),), (1.0,), self._dispersion)


def trace_of(name: str, seconds: int, seed: int) -> tuple[list[float], list[Request], int]:
    """Return a load in replicas that are full, its requests, and the replicas to begin with."""
    per_s = MODEL.full_tokens_per_s / MODEL.tokens
    rates = TRACES[name](seconds, MEAN_REPLICAS * per_s, random.Random(seed))
    requests = requests_of(rates, MODEL, random.Random(seed + 1))
    load = [rate / per_s for rate in rates]
    return load, requests, math.ceil(1.1 * sum(load[:60]) / 60)


def knowing(name: str, seconds: int, seed: int, late: float, ahead: bool) -> ReplicaPolicy:
    """Return our policy, told the rate."""
    mean = MEAN_REPLICAS * MODEL.full_tokens_per_s / MODEL.tokens
    rates = EXPECTED[name](seconds, mean, random.Random(seed))
    clumps = CLUMP_S * sum(rates) / seconds / CLUMPS if TRACES[name] != EXPECTED[name] else 0.0
    targets = Targets(1, MOST_REPLICAS, MODEL.batch, wait_s=WAIT_S, late=late)
    return ReplicaPolicy(targets, KnownRate(rates, 1 + clumps, ahead))


Run = tuple[float, float, list[int]]


def measure(name: str, seconds: int, seed: int, decide: Autoscaler, route: Router) -> Run:
    """Return replica-hours, the share in target, and the replicas asked for."""
    _, requests, initial = trace_of(name, seconds, seed)
    outcome = simulate(requests, MODEL, decide, route, seconds=seconds, initial=initial)
    return outcome.replica_hours, outcome.in_target(WAIT_S), outcome.asked


def ours(name: str, seconds: int, seed: int, ingresses: int = 1) -> Run:
    """Measure our policy, with our router in so many ingress replicas."""
    targets = Targets(1, MOST_REPLICAS, MODEL.batch, wait_s=WAIT_S, late=LATE)
    route = platforms_router(MODEL, ingresses)
    return measure(name, seconds, seed, ReplicaPolicy(targets).decide, route)


def knows(name: str, seconds: int, seed: int, ahead: bool) -> Run:
    """Measure our policy, told the rate, with the best of a few targets."""
    policies = [knowing(name, seconds, seed, late, ahead) for late in KNOWING_LATE]
    return cheapest(
        [
            measure(name, seconds, seed, policy.decide, platforms_router(MODEL))
            for policy in policies
        ]
    )


def serves(name: str, seconds: int, seed: int, setting: int) -> Run:
    """Measure Serve's policy."""
    decide = ServeDefault(SERVE_SETTINGS[setting]).decide
    return measure(name, seconds, seed, decide, two_choices())


def cheapest(runs: list[Run]) -> Run:
    """Return the cheapest that keeps the target, or the one that comes nearest."""
    keeping = [run for run in runs if run[1] >= 1 - LATE]
    return min(keeping) if keeping else max(runs, key=lambda run: run[1])


def bound(name: str, seconds: int, seed: int) -> tuple[float, list[int]]:
    """Return the optimum's replica-hours, and its replicas, by the second."""
    _, requests, initial = trace_of(name, seconds, seed)
    best = optimum(requests, MODEL, seconds=seconds, wait_s=WAIT_S, late=LATE, initial=initial)
    return best.replica_hours, [n for n in best.replicas for _ in range(int(best.step_s))]


def main() -> None:
    """Run, print a table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="twenty minutes a load, not an hour")
    parser.add_argument("--seeds", type=int, default=0, help="so many other seeds, from 200 on")
    parser.add_argument("--processes", type=int, help="at once; as many as there are CPUs")
    parser.add_argument("--plot", type=Path, help="write an SVG here")
    args = parser.parse_args()
    seconds = 1200 if args.quick else 3600
    figures: dict[str, Any] = {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "simulated_s": seconds,
        "latency_target": f"{1 - LATE:.0%} begin within {WAIT_S:g} s",
    }
    charts, others = [], range(FIRST_SEED, FIRST_SEED + args.seeds)
    with ProcessPoolExecutor(args.processes) as pool:
        print(f"{'load':12} {'':18} {'replica-hours':>13} {'of optimum':>10} {'in target':>10}")
        for name in TRACES:
            figures[name], chart = _compare(pool, name, seconds)
            charts.append(chart)
        for name in TRACES if others else ():
            first = figures[name]["gpu_hours_vs_optimum"], figures[name]["in_target"]
            figures[name] |= _over_seeds(pool, name, seconds, others, first)
    figures["gpu_hours_vs_optimum"] = max(figures[name]["gpu_hours_vs_optimum"] for name in TRACES)
    if args.plot:
        write_plot(args.plot, charts)
    print(json.dumps(_rounded(figures)))


def _compare(pool: Executor, name: str, seconds: int) -> tuple[dict[str, Any], Chart]:
    """Run everything on a load, and print it."""
    best = pool.submit(bound, name, seconds, SEED)
    mine = pool.submit(ours, name, seconds, SEED)
    several = pool.submit(ours, name, seconds, SEED, INGRESSES)
    told = [pool.submit(knows, name, seconds, SEED, ahead) for ahead in (False, True)]
    settings = range(len(SERVE_SETTINGS))
    serve = [pool.submit(serves, name, seconds, SEED, each) for each in settings]
    least, least_replicas = best.result()
    hours, share, replicas = mine.result()
    several_hours, several_share, _ = several.result()
    (now_hours, now_share, _), (ahead_hours, ahead_share, _) = (each.result() for each in told)
    runs = [run.result() for run in serve]
    theirs = cheapest(runs)
    _print(name, "optimum", least, least)
    _print(name, "ours", hours, least, share)
    _print(name, f"ours, {INGRESSES} ingresses", several_hours, least, several_share)
    _print(name, "told rate", now_hours, least, now_share)
    _print(name, "told rate ahead", ahead_hours, least, ahead_share)
    for number, run in enumerate(runs, 1):
        _print(name, f"serve, {number}", run[0], least, run[1])
    by_second = replicas[:: round(1 / STEP_S)][:seconds]
    load = trace_of(name, seconds, SEED)[0]
    return {
        "optimum_hours": least,
        "hours": hours,
        "in_target": share,
        "gpu_hours_vs_optimum": hours / least,
        f"ours_{INGRESSES}_ingresses_vs_optimum": several_hours / least,
        f"ours_{INGRESSES}_ingresses_in_target": several_share,
        "told_rate_vs_optimum": now_hours / least,
        "told_rate_in_target": now_share,
        "told_rate_ahead_vs_optimum": ahead_hours / least,
        "told_rate_ahead_in_target": ahead_share,
        "serve_hours": theirs[0],
        "serve_in_target": theirs[1],
        "vs_serve_default": hours / theirs[0],
        "serve_untuned_hours": runs[0][0],
        "serve_untuned_in_target": runs[0][1],
    }, Chart(name.replace("_", " "), load, by_second, least_replicas)


def _over_seeds(
    pool: Executor, name: str, seconds: int, seeds: range, first: tuple[float, float]
) -> dict[str, Any]:
    """Return the median and the worst of our policy over the seeds, the first among them."""
    bounds = [pool.submit(bound, name, seconds, seed) for seed in seeds]
    runs = [pool.submit(ours, name, seconds, seed) for seed in seeds]
    ratios, shares = [first[0]], [first[1]]
    for seed, best, run in zip(seeds, bounds, runs, strict=True):
        least, (hours, share, _) = best.result()[0], run.result()
        _print(name, f"ours, seed {seed}", hours, least, share)
        ratios.append(hours / least)
        shares.append(share)
    return {
        "seeds": [SEED, *seeds],
        "median_vs_optimum": statistics.median(ratios),
        "worst_vs_optimum": max(ratios),
        "median_in_target": statistics.median(shares),
        "worst_in_target": min(shares),
    }


def _print(name: str, row: str, hours: float, least: float, share: float | None = None) -> None:
    shown = "" if share is None else f"{share:.2%}"
    print(f"{name:12} {row:18} {hours:13.2f} {hours / least:10.3f} {shown:>10}", flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
