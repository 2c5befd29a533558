"""Manifests of Kubernetes: KubeRay's own kinds closely, others for what is common to all."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from deployments.checks.documents import Document
from deployments.checks.finding import Findings
from deployments.checks.secrets_in_file import check_secrets

_SERVICE = frozenset(
    [
        "serveConfigV2",
        "rayClusterConfig",
        "serviceUnhealthySecondThreshold",
        "deploymentUnhealthySecondThreshold",
        "rayClusterDeletionDelaySeconds",
        "serveService",
        "upgradeStrategy",
        "excludeHeadPodFromServeSvc",
        "suspend",
        "managedBy",
    ]
)
_CLUSTER = frozenset(
    [
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
        "gcsFaultToleranceOptions",
        "authOptions",
        "headServiceAnnotations",
        "suspend",
        "managedBy",
        "upgradeStrategy",
        "networkPolicy",
        "tlsOptions",
    ]
)
_HEAD = frozenset(
    [
        "rayStartParams",
        "template",
        "serviceType",
        "headService",
        "enableIngress",
        "resources",
        "labels",
    ]
)
_WORKER = frozenset(
    [
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "numOfHosts",
        "rayStartParams",
        "template",
        "suspend",
        "scaleStrategy",
        "idleTimeoutSeconds",
        "resources",
        "labels",
    ]
)


def check(document: Document, findings: Findings) -> None:
    """Find secrets, unknown keys, and what would leave a cluster open or without its state."""
    check_secrets(document, findings, "name a Secret by valueFrom.secretKeyRef")
    values = document.values
    if values["kind"] == "Secret" and (values.get("data") or values.get("stringData")):
        findings.add(
            document.at("data"), "a Secret with its content", "make it with kubectl create secret"
        )
    if not (values.get("metadata") or {}).get("name"):
        findings.add(document.at("metadata.name"), "missing", "add it")
    spec = _dict(values.get("spec"))
    if values["kind"] == "RayService":
        _check_keys(document, findings, spec, _SERVICE, "spec")
        cluster = _dict(spec.get("rayClusterConfig"))
        _check_cluster(document, findings, cluster, "spec.rayClusterConfig")
        if "gcsFaultToleranceOptions" not in cluster:
            findings.add(
                document.at("spec.rayClusterConfig.gcsFaultToleranceOptions"),
                "missing, so the head's end is the service's",
                "name a Redis in it",
            )
    elif values["kind"] == "RayCluster":
        _check_cluster(document, findings, spec, "spec")


def worker_groups(document: Document) -> Iterator[dict[str, Any]]:
    """Yield the groups of workers of a RayService or a RayCluster."""
    spec = _dict(document.values.get("spec"))
    cluster = _dict(spec.get("rayClusterConfig")) or spec
    groups = cluster.get("workerGroupSpecs")
    yield from (group for group in (groups if isinstance(groups, list) else []) if _dict(group))


def limits_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return what the Ray container of a group may use."""
    containers = _dict(_dict(group.get("template")).get("spec")).get("containers") or [{}]
    return _dict(_dict(_dict(containers[0]).get("resources")).get("limits"))


def _check_cluster(
    document: Document, findings: Findings, cluster: dict[str, Any], at: str
) -> None:
    _check_keys(document, findings, cluster, _CLUSTER, at)
    if _dict(cluster.get("authOptions")).get("mode") != "token":
        findings.add(
            document.at(at, "authOptions.mode"), "whoever reaches the port runs code", "set token"
        )
    given, here = cluster.get("rayVersion"), version("ray")
    if given != here:
        findings.add(
            document.at(at, "rayVersion"), f"{given}, and the image has {here}", f"set '{here}'"
        )
    head = _dict(cluster.get("headGroupSpec"))
    _check_keys(document, findings, head, _HEAD, f"{at}.headGroupSpec")
    if str(_dict(head.get("rayStartParams")).get("num-cpus")) != "0":
        findings.add(
            document.at(at, "headGroupSpec.rayStartParams.num-cpus"),
            "the head takes replicas",
            'set "0"',
        )
    for place, group in enumerate(worker_groups(document)):
        key = f"{at}.workerGroupSpecs.{place}"
        _check_keys(document, findings, group, _WORKER, key)
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        now = group.get("replicas", least)
        if least > most:
            findings.add(
                document.at(key, "minReplicas"),
                f"{least}, above maxReplicas of {most}",
                "raise maxReplicas or lower it",
            )
        elif not least <= now <= most:
            findings.add(
                document.at(key, "replicas"), f"{now}", f"choose one from {least} to {most}"
            )
    for key, template in _templates(cluster, at):
        _check_template(document, findings, template, key)


def _templates(cluster: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    groups = cluster.get("workerGroupSpecs")
    named = [("headGroupSpec", cluster.get("headGroupSpec"))]
    named += [(f"workerGroupSpecs.{i}", group) for i, group in enumerate(groups or [])]
    for key, group in named:
        yield f"{at}.{key}.template.spec", _dict(_dict(_dict(group).get("template")).get("spec"))


def _check_template(document: Document, findings: Findings, spec: dict[str, Any], at: str) -> None:
    containers = spec.get("containers")
    if not containers:
        findings.add(document.at(at, "containers"), "missing", "add the Ray container")
        return
    for place, container in enumerate(containers):
        image = str(_dict(container).get("image", ""))
        name = image.rsplit("/", 1)[-1]
        if "@" not in name and (":" not in name or name.endswith(":latest")):
            findings.add(
                document.at(at, "containers", place, "image"),
                f"'{image}' may be another image tomorrow",
                "name a version or a digest",
            )


def _check_keys(
    document: Document, findings: Findings, values: dict[str, Any], known: frozenset[str], at: str
) -> None:
    for key in values:
        if key not in known:
            findings.add(
                document.at(at, key), "no such key", f"there are: {', '.join(sorted(known))}"
            )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
