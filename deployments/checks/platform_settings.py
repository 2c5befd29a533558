"""The platform's own settings: the catalog of models and all that is around it."""

from __future__ import annotations

from pathlib import Path

from deployments.checks.documents import Document
from deployments.checks.finding import Findings
from deployments.checks.secrets_in_file import check_secrets
from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.checkpoint import check_adapter, check_weights
from omai_ray.errors import ConfigError, OMAiError
from omai_ray.settings import ENVIRONMENT, Settings, parse_settings

_IN_ENVIRONMENT = {"OMAI_REDIS_URL": "redis://in.the.environment"}


def check(document: Document, findings: Findings) -> None:
    """Find keys and values that the start would refuse, and models that cannot be loaded."""
    before = len(findings.items)
    variables = ", ".join(ENVIRONMENT)
    check_secrets(document, findings, f"give it by the environment ({variables})")
    settings = settings_of(document, findings)
    if settings is None or len(findings.items) > before:
        return
    for place, spec in enumerate(settings.models):
        try:
            _check_model(spec)
        except OMAiError as error:
            findings.add(document.at("models", place, "source"), error.message)


def settings_of(document: Document, findings: Findings | None = None) -> Settings | None:
    """Return the settings of a document, or None where there are none, noting why."""
    limiter = document.values.get("limiter")
    if not isinstance(limiter, dict):
        limiter = {}
    elsewhere = limiter.get("backend") == "redis" and "redis_url" not in limiter
    environment = _IN_ENVIRONMENT if elsewhere else {}
    try:
        return parse_settings(document.values, environment)
    except ConfigError as error:
        for line in error.message.splitlines():
            if findings is not None:
                key, _, problem = line.partition(": ")
                findings.add(document.at(key), problem)
        return None


def _check_model(spec: ModelSpec) -> None:
    """Raise OMAiError where what is here of a model cannot be served; nothing is fetched."""
    if _is_here(spec.source):
        check_weights(spec, locate(spec, fetch=False))
    for source in spec.adapters.values():
        if _is_here(source):
            check_adapter(Path(source).expanduser())


def _is_here(source: str) -> bool:
    """Whether a model is on this machine: other paths may be of the nodes, hub ids of the hub."""
    directory = Path(source).expanduser()
    return source.startswith(("builtin:", ".")) or directory.is_dir()
