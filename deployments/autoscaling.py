"""The replica policy as Serve calls it, in Serve's controller."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from omai_ray.autoscaling.load import ReplicaLoad
from omai_ray.autoscaling.policy import ReplicaPolicy, Snapshot, Targets
from omai_ray.catalog import ModelSpec

# How often replicas and handles report; Serve's mean of what they say is over two seconds. A model
# that sleeps wakes by a report: what Serve sends with its first request has the zeros before alone.
REPORT_S = 1.0
_WAKING_REPORT_S = 0.4
_LOOK_BACK_S = 2.0


class ServePolicy:
    """Called with a deployment's context several times a second; keeps its own state.

    Serve makes one anew where the application is deployed or its controller starts again.
    """

    def __init__(self, **targets: Any) -> None:
        self._policy = ReplicaPolicy(Targets(**targets))

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the replicas that there should be, and no state for Serve to keep."""
        now = context.current_time
        return self._policy.decide(
            Snapshot(
                now_s=time.time() if now is None else now,
                running=context.current_num_replicas,
                target=context.target_num_replicas,
                ongoing_requests=context.total_num_requests,
                unassigned_requests=context.total_queued_requests,
                loads=_loads(context),
            )
        ), {}


def autoscaling_config(spec: ModelSpec) -> AutoscalingConfig:
    """Return Serve's settings for a model that scales: the policy decides, Serve delays nothing."""
    replicas = spec.replicas
    targets = Targets(
        min_replicas=replicas.min,
        max_replicas=replicas.max,
        full_requests=spec.full_requests,
        wait_s=replicas.target_wait_s,
        scale_down_s=replicas.scale_down_s,
        idle_s=replicas.scale_to_zero_s,
    )
    with warnings.catch_warnings():
        # Serve has no other setting for how often metrics are sent: the environment variables that
        # it recommends instead are not read yet.
        warnings.filterwarnings("ignore", "The `metrics_interval_s` field", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=replicas.min,
            initial_replicas=replicas.min if replicas.initial is None else replicas.initial,
            max_replicas=replicas.max,
            target_ongoing_requests=spec.full_requests,
            metrics_interval_s=REPORT_S if replicas.min else _WAKING_REPORT_S,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function=f"{ServePolicy.__module__}:{ServePolicy.__name__}",
                policy_kwargs=asdict(targets),
            ),
        )


def _loads(context: AutoscalingContext) -> dict[str, ReplicaLoad]:
    """Return each replica's newest load; one that has reported none yet is left out."""
    series = context.raw_metrics or {}
    newest: dict[str, dict[str, float]] = {}
    for name in ReplicaLoad.__dataclass_fields__:
        for replica, points in series.get(name, {}).items():
            if points:
                newest.setdefault(str(replica), {})[name] = points[-1].value
    complete = len(ReplicaLoad.__dataclass_fields__)
    return {
        replica: ReplicaLoad(**values)
        for replica, values in newest.items()
        if len(values) == complete
    }
