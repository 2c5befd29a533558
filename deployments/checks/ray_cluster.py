"""cluster.yaml of `ray up`: by Ray's own schema, and what that leaves open."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import ValidationError  # type: ignore[import-untyped]
from ray._private.label_utils import validate_node_label_syntax, validate_node_labels
from ray.autoscaler._private.util import prepare_config, validate_config

from deployments.checks.documents import Document, dict_of, dicts_of
from deployments.checks.finding import Findings
from deployments.checks.machines import MACHINES
from deployments.checks.secrets_in_file import check_secrets

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105 - a name
_FLOATING = re.compile(r"^[^@:]+(:latest)?$|^[^@]+:\d+/[^:@]+(:latest)?$|:latest$")


def check(document: Document, findings: Findings) -> None:
    """Find what `ray up` would refuse, and what it would take though it is wrong or unsafe."""
    check_secrets(document, findings, "name a file that file_mounts copies instead")
    _check_schema(document, findings)
    _check_commands(document, findings)
    _check_image(document, findings)
    _check_ports(document, findings)
    types = node_types(document)
    for name, node in types.items():
        _check_node(document, findings, name, node)
    head = str(document.values.get("head_node_type"))
    if head in types and dict_of(types[head].get("resources")).get("CPU") != 0:
        findings.add(
            document.at("available_node_types", head, "resources.CPU"),
            "the head takes replicas",
            "set 0, so that the cluster's own processes have the head to themselves",
        )


def node_types(document: Document) -> dict[str, dict[str, Any]]:
    """Return the node types of a cluster that are at all described."""
    types = dict_of(document.values.get("available_node_types"))
    return {str(name): node for name, node in types.items() if isinstance(node, dict)}


def _check_schema(document: Document, findings: Findings) -> None:
    if not isinstance(document.values.get("provider"), dict):
        findings.add(document.at("provider"), "missing", "add it, with its type and region")
        return
    try:
        # Ray's check is of what its defaults make whole; the file alone fails it.
        validate_config(prepare_config(copy.deepcopy(document.values)))
    except ValidationError as error:
        findings.add(
            document.at(*(error.absolute_path or ["cluster"])), error.message, "correct it"
        )
    except Exception as error:
        findings.add(document.at("cluster"), f"Ray refuses it: {error!s}", "correct it")


def _check_commands(document: Document, findings: Findings) -> None:
    if document.values.get("setup_commands") is None:
        findings.add(
            document.at("setup_commands"),
            "left out, so Ray would install a nightly build of itself",
            "set [] where the image has Ray",
        )
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [c for c in _strings(document.values.get(key)) if "ray start" in c]
        if not starts:
            findings.add(document.at(key), "nothing starts Ray", "add `ray start` with its options")
        for command in starts:
            _check_start(document.at(key), command, findings)
    _check_token(document, findings)


def _check_token(document: Document, findings: Findings) -> None:
    """Find a token that file_mounts brings to no node, where the start commands name its file."""
    mounts = dict_of(document.values.get("file_mounts"))
    targets = [str(target).rstrip("/") for target in mounts]
    named = {_TOKEN_FILE}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in _strings(document.values.get(key)):
            named |= set(re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", command))
    if not any(path == t or path.startswith(f"{t}/") for path in named for t in targets):
        findings.add(
            document.at("file_mounts"),
            "the nodes have no token in common",
            f"add `{_TOKEN_FILE}: {_TOKEN_FILE}`",
        )


def _check_start(place: str, command: str, findings: Findings) -> None:
    if "RAY_AUTH_MODE=token" not in command:
        findings.add(
            place, "whoever reaches the port runs code", "put RAY_AUTH_MODE=token before ray start"
        )
    host = re.search(r"--dashboard-host[= ](\S+)", command)
    if host and host[1].strip("'\"") not in _LOOPBACK:
        findings.add(
            place,
            f"the dashboard listens on {host[1]}",
            "set --dashboard-host=127.0.0.1 and use `ray dashboard`",
        )


def _check_image(document: Document, findings: Findings) -> None:
    docker = dict_of(document.values.get("docker"))
    for key in ("image", "head_image", "worker_image"):
        image = docker.get(key)
        if isinstance(image, str) and _FLOATING.search(image):
            findings.add(
                document.at("docker", key),
                f"'{image}' may be another image tomorrow",
                "name a version or a digest",
            )


def _check_ports(document: Document, findings: Findings) -> None:
    group = dict_of(dict_of(document.values.get("provider")).get("security_group"))
    for place, rule in enumerate(dicts_of(group.get("IpPermissions"))):
        everyone = [r for r in dicts_of(rule.get("IpRanges")) if r.get("CidrIp") == "0.0.0.0/0"]
        if everyone and rule.get("FromPort") != 22:
            findings.add(
                document.at("provider.security_group.IpPermissions", place),
                f"port {rule.get('FromPort')} is open to everybody",
                "name the network of your load balancer in CidrIp",
            )


def _check_node(document: Document, findings: Findings, name: str, node: dict[str, Any]) -> None:
    def add(key: str, problem: str, remedy: str) -> None:
        findings.add(document.at("available_node_types", name, key), problem, remedy)

    least, most = node.get("min_workers", 0), node.get("max_workers")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        add("min_workers", f"{least}, above max_workers of {most}", "raise max_workers or lower it")
    try:
        validate_node_labels(node.get("labels") or {})
        validate_node_label_syntax(node.get("labels") or {})
    except (ValueError, TypeError, AttributeError) as error:  # Ray expects a mapping of texts
        add("labels", str(error), "use the syntax of Kubernetes' labels")
    config = node.get("node_config")
    kind = dict_of(document.values.get("provider")).get("type")
    machine = MACHINES.get(str(kind))
    if machine is None or not isinstance(config, dict):
        return
    for key in config:
        if key not in machine.keys:
            add(f"node_config.{key}", f"{machine.call} has no such parameter", "correct its name")
    instance = config.get(machine.key)
    if not isinstance(instance, str):
        add(f"node_config.{machine.key}", "missing", "name the type of machine")
        return
    offered = dict_of(node.get("resources")).get("GPU", 0)
    there = machine.gpus(config)
    if there is not None and offered != there:
        add("resources.GPU", f"{offered}, and {instance} has {there}", f"set {there}")


def _strings(value: Any) -> Iterator[str]:
    yield from (
        item for item in (value if isinstance(value, list) else []) if isinstance(item, str)
    )
