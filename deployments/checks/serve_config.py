"""Configuration of Ray Serve, as `serve deploy` and RayService take it."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from deployments.checks.documents import Document, dict_of, dicts_of
from deployments.checks.finding import Findings
from deployments.checks.secrets_in_file import check_secrets
from omai_ray.settings import Settings
from omai_ray.spelling import meant
from omai_ray.unknown_keys import unknown_keys

_OURS = "deployments.app:app"


def check(document: Document, findings: Findings) -> None:
    """Find unknown keys, values that Serve refuses, applications that cannot be imported."""
    check_secrets(document, findings, "name a variable of the cluster's environment instead")
    for key, known in unknown_keys(document.values, ServeDeploySchema):
        close = meant(key.rsplit(".", 1)[-1], known)
        findings.add(
            document.at(key),
            "no such key",
            f"did you mean {close}?" if close else f"remove it (there are: {', '.join(known)})",
        )
    _validate(document, findings, ServeDeploySchema, document.values, ())
    for place, application in enumerate(dicts_of(document.values.get("applications"))):
        _check_application(document, findings, application, ("applications", place))


def _check_application(
    document: Document, findings: Findings, application: dict[str, Any], at: tuple[object, ...]
) -> None:
    path = application.get("import_path")
    if isinstance(path, str):
        reason = _why_not_importable(path)
        if reason:
            findings.add(document.at(*at, "import_path"), reason, "correct it")
    if path == _OURS:
        for name in dict_of(application.get("args")):
            if name != "config" and name not in Settings.model_fields:
                findings.add(
                    document.at(*at, "args", name),
                    "no such argument",
                    "name a key of the settings, or config",
                )
    for place, deployment in enumerate(dicts_of(application.get("deployments"))):
        scaling = deployment.get("autoscaling_config")
        if isinstance(scaling, dict):
            key = (*at, "deployments", place, "autoscaling_config")
            _validate(document, findings, AutoscalingConfig, scaling, key)


def _validate(
    document: Document,
    findings: Findings,
    model: type[BaseModel],
    values: dict[str, Any],
    at: tuple[object, ...],
) -> None:
    try:
        model.model_validate(values)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False):
            findings.add(document.at(*at, *problem["loc"]), problem["msg"], "correct the value")
    except Exception as error:  # Serve's own validators read some values before they check them
        findings.add(
            document.at(*(at or ("applications",))), f"Serve cannot read it: {error}", "correct it"
        )


def _why_not_importable(path: str) -> str | None:
    module, separator, attribute = path.partition(":")
    if not separator:
        module, _, attribute = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        return f"'{path}' cannot be imported: {type(error).__name__}: {error}"
    return None if hasattr(found, attribute) else f"module {module} has no '{attribute}'"
