"""What the replica policy costs, and what it keeps, beside Serve's own and the offline optimum.

`python benchmarks/autoscaling.py [--quick]`: three seeded loads run through a simulator of replicas
(benchmarks/autoscaling_simulator.py) under our policy with its default targets, the same for all
loads; under Serve's default policy, the function that the installed Ray has, with the delays of
its AutoscalingConfig, in several settings, of which each load gets the cheapest that keeps the
target, or where none does the one that comes nearest; and the fewest replica-hours that keep the
target for one who knows the load, a lower bound (benchmarks/autoscaling_optimum.py). The target:
95 % of the requests begin to be answered within 5 s. Writes a plot with --plot, and ends with one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
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
    Model,
    Outcome,
    Request,
    requests_of,
    simulate,
)
from benchmarks.autoscaling_traces import TRACES  # noqa: E402
from omai_ray.autoscaling.policy import ReplicaPolicy, Snapshot, Targets  # noqa: E402

MODEL = Model()
WAIT_S, LATE = 5.0, 0.05
MEAN_REPLICAS = 16.0
MOST_REPLICAS = 100
SEED = 7
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


def trace_of(name: str, seconds: int) -> tuple[list[float], list[Request], int]:
    """Return a load in replicas that are full, its requests, and the replicas to begin with."""
    per_s = MODEL.full_tokens_per_s / MODEL.tokens
    rates = TRACES[name](seconds, MEAN_REPLICAS * per_s, random.Random(SEED))
    requests = requests_of(rates, MODEL, random.Random(SEED + 1))
    load = [rate / per_s for rate in rates]
    return load, requests, math.ceil(1.1 * sum(load[:60]) / 60)


def measure(name: str, seconds: int, setting: int | None) -> tuple[float, float, list[int]]:
    """Return replica-hours, the share in target, and replicas: under Serve's policy, or ours."""
    _, requests, initial = trace_of(name, seconds)
    targets = Targets(1, MOST_REPLICAS, MODEL.batch, wait_s=WAIT_S, late=LATE)
    policy = ReplicaPolicy(targets) if setting is None else ServeDefault(SERVE_SETTINGS[setting])
    outcome: Outcome = simulate(requests, MODEL, policy.decide, seconds=seconds, initial=initial)
    return outcome.replica_hours, outcome.in_target(WAIT_S), outcome.asked


def bound(name: str, seconds: int) -> tuple[float, list[int]]:
    """Return the optimum's replica-hours, and its replicas, by the second."""
    _, requests, initial = trace_of(name, seconds)
    best = optimum(requests, MODEL, seconds=seconds, wait_s=WAIT_S, late=LATE, initial=initial)
    return best.replica_hours, [n for n in best.replicas for _ in range(int(best.step_s))]


def main() -> None:
    """Run, print a table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="twenty minutes a load, not an hour")
    parser.add_argument("--plot", type=Path, help="write an SVG here")
    args = parser.parse_args()
    seconds = 1200 if args.quick else 3600
    figures: dict[str, Any] = {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "simulated_s": seconds,
        "latency_target": f"{1 - LATE:.0%} begin within {WAIT_S:g} s",
    }
    charts, ratios = [], []
    with ProcessPoolExecutor() as pool:
        best = {name: pool.submit(bound, name, seconds) for name in TRACES}
        ours = {name: pool.submit(measure, name, seconds, None) for name in TRACES}
        serve = {
            name: [pool.submit(measure, name, seconds, each) for each in range(len(SERVE_SETTINGS))]
            for name in TRACES
        }
        print(f"{'load':12} {'':14} {'replica-hours':>13} {'of optimum':>10} {'in target':>10}")
        for name in TRACES:
            least, least_replicas = best[name].result()
            hours, share, replicas = ours[name].result()
            runs = [run.result()[:2] for run in serve[name]]
            keeping = [run for run in runs if run[1] >= 1 - LATE]
            theirs = min(keeping) if keeping else max(runs, key=lambda run: run[1])
            rows = [("optimum", least, None), ("ours", hours, share)]
            rows += [(f"serve, {n}", *run) for n, run in enumerate(runs, 1)]
            for row, row_hours, row_share in rows:
                shown = "" if row_share is None else f"{row_share:.2%}"
                print(f"{name:12} {row:14} {row_hours:13.2f} {row_hours / least:10.3f} {shown:>10}")
            ratios.append(hours / least)
            figures[name] = {
                "optimum_hours": least,
                "hours": hours,
                "in_target": share,
                "gpu_hours_vs_optimum": hours / least,
                "serve_hours": theirs[0],
                "serve_in_target": theirs[1],
                "vs_serve_default": hours / theirs[0],
                "serve_untuned_hours": runs[0][0],
                "serve_untuned_in_target": runs[0][1],
            }
            by_second = replicas[:: round(1 / STEP_S)][:seconds]
            load = trace_of(name, seconds)[0]
            charts.append(Chart(name.replace("_", " "), load, by_second, least_replicas))
    figures["gpu_hours_vs_optimum"] = max(ratios)
    if args.plot:
        write_plot(args.plot, charts)
    print(json.dumps(_rounded(figures)))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
