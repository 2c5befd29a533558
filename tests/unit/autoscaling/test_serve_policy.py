"""The policy behind Serve's own types: what Serve is told, and what it tells."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeSeries, TimeStampedValue
from ray.serve.config import AutoscalingContext

from deployments.autoscaling import ServePolicy, autoscaling_config
from omai_ray.autoscaling.load import ReplicaLoad
from omai_ray.autoscaling.policy import Targets
from omai_ray.catalog import ModelSpec, Replicas

MODEL = DeploymentID("model")
SPEC = ModelSpec(
    name="m",
    task="chat",
    source="x",
    max_running_requests=4,
    replicas=Replicas(min=0, max=5, target_wait_s=2, scale_to_zero_s=10),
)


def context(
    now: float, loads: dict[str, ReplicaLoad], requests: float, target: int
) -> AutoscalingContext:
    """Return what Serve shows the policy."""
    metrics: dict[str, dict[ReplicaID, TimeSeries]] = {}
    for name, load in loads.items():
        for field, value in asdict(load).items():
            points = [TimeStampedValue(now - 1, -1.0), TimeStampedValue(now, value)]
            metrics.setdefault(field, {})[ReplicaID(name, MODEL)] = points
    return AutoscalingContext(
        deployment_id=MODEL,
        deployment_name="model",
        app_name="omai",
        current_num_replicas=len(loads),
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=lambda: requests,
        total_queued_requests=lambda: 0.0,
        aggregated_metrics={},
        raw_metrics=lambda: metrics,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=5,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now,
        config=autoscaling_config(SPEC),
    )


def test_serve_gets_the_models_bounds_and_delays_nothing() -> None:
    """Reports are frequent, most so where they wake a model; the policy has the model's targets."""
    config = autoscaling_config(SPEC)
    assert (0, 0, 5) == (config.min_replicas, config.initial_replicas, config.max_replicas)
    assert (0.0, 0.0) == (config.upscale_delay_s, config.downscale_delay_s)
    awake = SPEC.model_copy(update={"replicas": Replicas(min=1, max=5)})
    assert config.metrics_interval_s < autoscaling_config(awake).metrics_interval_s <= 1.0
    assert ServePolicy.__name__ == config.policy.get_policy().__name__
    assert Targets(0, 5, 4, wait_s=2, idle_s=10) == Targets(**config.policy.policy_kwargs)


def test_the_newest_report_of_each_replica_counts() -> None:
    """Work that arrives at two replicas, faster than they do it, brings more."""
    policy = ServePolicy(**autoscaling_config(SPEC).policy.policy_kwargs)
    wanted = 2
    for second in range(60):
        done = 100.0 * second  # tokens/s that four requests at a time have
        load = ReplicaLoad(
            float(second),
            queued=max(0.0, 2.0 * second),
            running_s=4.0 * second,
            asked=6.0 * second,
            done_tokens=done,
            ended=4.0 * second,
            ended_tokens=done,
        )
        wanted, state = policy(context(float(second), {"a": load, "b": load}, 8.0, wanted))
        assert {} == state
    assert 4 <= wanted <= 5  # 300 tokens/s arrive, and each does 100


def test_a_replica_that_has_reported_nothing_is_no_trouble() -> None:
    """The requests decide until one reports."""
    policy = ServePolicy(**autoscaling_config(SPEC).policy.policy_kwargs)
    seen = context(0.0, {}, 9.0, 1)
    seen.current_num_replicas = 1
    assert 3 == policy(seen)[0]


@pytest.mark.parametrize(
    ("task", "target", "full"),
    [("chat", None, 4), ("chat", 2, 2), ("chat", 9, 4), ("embedding", None, 16)],
)
def test_a_replica_is_full_with_what_it_runs_or_its_target(
    task: str, target: float | None, full: float
) -> None:
    """A chat model is never taken to run more than it does."""
    spec = ModelSpec.model_validate(
        {
            "name": "m",
            "task": task,
            "source": "x",
            "max_running_requests": 4,
            "replicas": {"target_ongoing_requests": target},
        }
    )
    assert full == spec.full_requests
