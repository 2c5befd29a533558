"""From settings to the Serve application: one ingress, one deployment for each model.

`serve run deployments.app:app` and `serve run deployments.app:app config=FILE` work as they are;
`omai-ray serve` runs the same graph on a Ray of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from deployments.autoscaling import autoscaling_config
from deployments.chat import ChatReplica
from deployments.edge import CALLBACK_VARIABLE, HAPROXY_VARIABLE
from deployments.embedding import EmbeddingReplica
from deployments.haproxy import BINARY_VARIABLE
from deployments.ingress import CATALOG, Ingress
from deployments.names import deployment_name, version_of
from deployments.placing import engine_options, placed
from deployments.routing import router_config
from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError
from omai_ray.identity.first_administrator import make_first_administrator
from omai_ray.settings import Settings, load_settings

# Models end first, so that the ingress still settles and records what they leave unfinished.
SETTLE_S = 3.0
# Serve replaces a replica that fails three checks in a row.
HEALTH_PERIOD_S = 5.0
HEALTH_TIMEOUT_S = 30.0
# What a model's replicas have no need to know: they run on where it changes.
_OF_NO_REPLICA = {"replicas", "price", "owned_by", "typical_output_tokens"}


def app(args: dict[str, str]) -> Application:
    """Build from `serve run`'s key=value arguments: config, state_dir. Raises ConfigError.

    The first administrator is made where their password is set: what is printed here ends in a log.
    """
    overrides = {key: value for key, value in args.items() if key != "config"}
    config = Path(args["config"]) if "config" in args else None
    settings = load_settings(config, overrides)
    _check_proxy(settings, os.environ)
    if settings.admin_password is not None:
        make_first_administrator(settings)
    return build(settings)


def _check_proxy(settings: Settings, environment: Mapping[str, str]) -> None:
    """Raise ConfigError where Serve was started with another proxy, or without our edge in it."""
    haproxy = environment.get(HAPROXY_VARIABLE) == "1"
    if haproxy != (settings.proxy == "haproxy"):
        raise ConfigError(
            f"proxy: the settings say {settings.proxy}, and where Ray was started "
            f"{HAPROXY_VARIABLE} is {environment.get(HAPROXY_VARIABLE, 'not set')}: set it to "
            f"{int(settings.proxy == 'haproxy')} on every node, or change the setting"
        )
    for name in (CALLBACK_VARIABLE, BINARY_VARIABLE):
        if haproxy and not environment.get(name):
            raise ConfigError(
                f"proxy: {name} has to be set on every node where Ray is started, as the image "
                "does: without it HAProxy is left open"
            )


def build(settings: Settings) -> Application:
    """Return the bound graph for these settings."""
    settings = settings.model_copy(update={"admin_password": None})  # no replica needs it
    log_file = str(settings.log_file) if settings.log_file else None
    handles = {
        spec.name: _deployment(spec, settings).bind(spec, settings.log_level, log_file)
        for spec in settings.models
    }
    ingress = serve.deployment(Ingress).options(  # type: ignore[attr-defined]
        name="ingress",
        num_replicas=settings.ingress.replicas,
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
        max_replicas_per_node=settings.ingress.max_replicas_per_node,
        ray_actor_options=placed(
            {"num_cpus": settings.ingress.num_cpus}, settings.ingress.placement
        ),
        graceful_shutdown_timeout_s=settings.drain_s + SETTLE_S,
        max_surge_percent=100,
        # Replicas take another catalog as they run; all else starts them anew.
        user_config=settings.model_dump(mode="json", include=CATALOG),
        version=version_of(settings.model_dump_json(exclude=CATALOG)),
        _internal=True,
    )
    bound: Application = ingress.bind(settings, handles)
    return bound


def _deployment(spec: ModelSpec, settings: Settings) -> Deployment:
    replica = ChatReplica if spec.task == "chat" else EmbeddingReplica
    deployment: Deployment = serve.deployment(replica).options(  # type: ignore[attr-defined]
        name=deployment_name(spec.name),
        # Engines bound online requests and those of batches, each by as much.
        max_ongoing_requests=2 * (spec.max_running_requests + spec.max_queued_requests),
        max_queued_requests=spec.max_queued_requests,
        max_replicas_per_node=spec.max_replicas_per_node,
        ray_actor_options=engine_options(spec),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.drain_s,
        max_surge_percent=spec.replicas.surge_percent,
        request_router_config=router_config(spec, settings.ingress.replicas),
        version=version_of(
            spec.model_dump_json(exclude=_OF_NO_REPLICA), settings.log_level, str(settings.log_file)
        ),
        _internal=True,
        **_scaling(spec),
    )
    return deployment


def _scaling(spec: ModelSpec) -> dict[str, Any]:
    replicas = spec.replicas
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.max}
    return {"autoscaling_config": autoscaling_config(spec)}


def logical_cpus(settings: Settings) -> float:
    """Return the CPUs that the smallest running graph reserves."""
    models = sum(spec.num_cpus * max(spec.replicas.min, 1) for spec in settings.models)
    return models + settings.ingress.num_cpus * settings.ingress.replicas
