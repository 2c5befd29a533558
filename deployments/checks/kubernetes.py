"""Manifests of Kubernetes: KubeRay's own kinds closely, others for what is common to all."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from deployments.checks.documents import Document, dict_of, dicts_of
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
_OTHERS = ("RayJob", "RayCronJob")


def check(document: Document, findings: Findings) -> None:
    """Find secrets, unknown keys, and what would leave a cluster open or without its state."""
    check_secrets(document, findings, "name a Secret by valueFrom.secretKeyRef")
    values = document.values
    if values["kind"] == "Secret" and (values.get("data") or values.get("stringData")):
        findings.add(
            document.at("data"), "a Secret with its content", "make it with kubectl create secret"
        )
    if not dict_of(values.get("metadata")).get("name"):
        findings.add(document.at("metadata.name"), "missing", "add it")
    spec = dict_of(values.get("spec"))
    if values["kind"] == "RayService":
        _check_keys(document, findings, spec, _SERVICE, "spec")
        cluster = dict_of(spec.get("rayClusterConfig"))
        _check_cluster(document, findings, cluster, "spec.rayClusterConfig")
        if "gcsFaultToleranceOptions" not in cluster:
            findings.add(
                document.at("spec.rayClusterConfig.gcsFaultToleranceOptions"),
                "missing, so the head's end is the service's",
                "name a Redis in it",
            )
    elif values["kind"] == "RayCluster":
        _check_cluster(document, findings, spec, "spec")
    elif str(values["apiVersion"]).startswith("ray.io/") and values["kind"] not in _OTHERS:
        findings.add(
            document.at("kind"),
            f"KubeRay has no kind '{values['kind']}'",
            "one of RayService, RayCluster, RayJob and RayCronJob",
        )


def worker_groups(document: Document) -> Iterator[dict[str, Any]]:
    """Yield the groups of workers of a RayService or a RayCluster."""
    spec = dict_of(document.values.get("spec"))
    cluster = dict_of(spec.get("rayClusterConfig")) or spec
    yield from dicts_of(cluster.get("workerGroupSpecs"))


def limits_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return what the Ray container of a group may use."""
    spec = dict_of(dict_of(group.get("template")).get("spec"))
    first = next(iter(dicts_of(spec.get("containers"))), {})
    return dict_of(dict_of(first.get("resources")).get("limits"))


def _check_cluster(
    document: Document, findings: Findings, cluster: dict[str, Any], at: str
) -> None:
    _check_keys(document, findings, cluster, _CLUSTER, at)
    if dict_of(cluster.get("authOptions")).get("mode") != "token":
        findings.add(
            document.at(at, "authOptions.mode"), "whoever reaches the port runs code", "set token"
        )
    given, here = cluster.get("rayVersion"), version("ray")
    if given != here:
        findings.add(
            document.at(at, "rayVersion"), f"{given}, and the image has {here}", f"set '{here}'"
        )
    head = dict_of(cluster.get("headGroupSpec"))
    _check_keys(document, findings, head, _HEAD, f"{at}.headGroupSpec")
    if str(dict_of(head.get("rayStartParams")).get("num-cpus")) != "0":
        findings.add(
            document.at(at, "headGroupSpec.rayStartParams.num-cpus"),
            "the head takes replicas",
            'set "0"',
        )
    groups = cluster.get("workerGroupSpecs")
    if groups is not None and not isinstance(groups, list):
        findings.add(document.at(at, "workerGroupSpecs"), "no list of groups", "write one")
    for place, group in enumerate(worker_groups(document)):
        key = f"{at}.workerGroupSpecs.{place}"
        _check_keys(document, findings, group, _WORKER, key)
        _check_replicas(document, findings, group, key)
    for key, template in _templates(cluster, at):
        _check_template(document, findings, template, key)


def _check_replicas(document: Document, findings: Findings, group: dict[str, Any], at: str) -> None:
    names = ("minReplicas", "maxReplicas", "replicas")
    given = {name: group[name] for name in names if group.get(name) is not None}
    wrong = [name for name, value in given.items() if type(value) is not int]
    for name in wrong:
        findings.add(
            document.at(at, name), f"no whole number: {given[name]!r}", "write one, without quotes"
        )
    if wrong:
        return
    least, most = given.get("minReplicas", 0), given.get("maxReplicas", 0)
    now = given.get("replicas", least)
    if least > most:
        findings.add(
            document.at(at, "minReplicas"),
            f"{least}, above maxReplicas of {most}",
            "raise maxReplicas or lower it",
        )
    elif not least <= now <= most:
        findings.add(document.at(at, "replicas"), f"{now}", f"choose one from {least} to {most}")


def _templates(cluster: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    groups = cluster.get("workerGroupSpecs")
    named = [("headGroupSpec", cluster.get("headGroupSpec"))]
    for place, group in enumerate(groups if isinstance(groups, list) else []):
        named.append((f"workerGroupSpecs.{place}", group))
    for key, group in named:
        template = dict_of(dict_of(group).get("template"))
        yield f"{at}.{key}.template.spec", dict_of(template.get("spec"))


def _check_template(document: Document, findings: Findings, spec: dict[str, Any], at: str) -> None:
    containers = dicts_of(spec.get("containers"))
    if not containers:
        findings.add(document.at(at, "containers"), "missing", "add the Ray container")
    for place, container in enumerate(containers):
        image = str(container.get("image", ""))
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
