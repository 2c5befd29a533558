"""From settings to the Serve application: one ingress, one deployment for each model.

`serve run deployments.app:app` and `serve run deployments.app:app config=FILE` work as they are;
`omai-ray serve` runs the same graph on a Ray of its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from deployments.autoscaling import autoscaling_config
from deployments.chat import ChatReplica
from deployments.embedding import EmbeddingReplica
from deployments.ingress import Ingress
from omai_ray.catalog import ModelSpec
from omai_ray.identity.first_administrator import make_first_administrator
from omai_ray.settings import Settings, load_settings

# Models end first, so that the ingress still settles and records what they leave unfinished.
MODEL_DRAIN_S = 4.0
INGRESS_DRAIN_S = 7.0
HEALTH_TIMEOUT_S = 30.0


def app(args: dict[str, str]) -> Application:
    """Build from `serve run`'s key=value arguments: config, state_dir. Raises ConfigError.

    The first administrator is made where their password is set: what is printed here ends in a log.
    """
    overrides = {key: value for key, value in args.items() if key != "config"}
    config = Path(args["config"]) if "config" in args else None
    settings = load_settings(config, overrides)
    if settings.admin_password is not None:
        make_first_administrator(settings)
    return build(settings)


def build(settings: Settings) -> Application:
    """Return the bound graph for these settings."""
    settings = settings.model_copy(update={"admin_password": None})  # no replica needs it
    log_file = str(settings.log_file) if settings.log_file else None
    handles = {
        spec.name: _deployment(spec).bind(spec, settings.log_level, log_file)
        for spec in settings.models
    }
    ingress = serve.deployment(Ingress).options(  # type: ignore[attr-defined]
        name="ingress",
        num_replicas=settings.ingress.replicas,
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        graceful_shutdown_timeout_s=INGRESS_DRAIN_S,
    )
    bound: Application = ingress.bind(settings, handles)
    return bound


def _deployment(spec: ModelSpec) -> Deployment:
    replica = ChatReplica if spec.task == "chat" else EmbeddingReplica
    deployment: Deployment = serve.deployment(replica).options(  # type: ignore[attr-defined]
        name=deployment_name(spec.name),
        max_ongoing_requests=spec.max_running_requests + spec.max_queued_requests,
        max_queued_requests=spec.max_queued_requests,
        ray_actor_options=_actor_options(spec),
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=MODEL_DRAIN_S,
        **_scaling(spec),
    )
    return deployment


def _actor_options(spec: ModelSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus}
    if spec.runtime_env:
        options["runtime_env"] = spec.runtime_env
    return options


def _scaling(spec: ModelSpec) -> dict[str, Any]:
    replicas = spec.replicas
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.max}
    return {"autoscaling_config": autoscaling_config(spec)}


def deployment_name(model: str) -> str:
    """Return a model's deployment's name: its own, with what Serve does not take replaced."""
    return "model-" + re.sub(r"[^A-Za-z0-9_.-]", "-", model)


def logical_cpus(settings: Settings) -> float:
    """Return the CPUs that the smallest running graph reserves."""
    models = sum(spec.num_cpus * max(spec.replicas.min, 1) for spec in settings.models)
    return models + settings.ingress.num_cpus * settings.ingress.replicas
