"""What is found in a cluster.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

Found = Callable[..., list[str]]
TYPES = "available_node_types"


def put(*keys: Any) -> Callable[[Any], None]:
    """Return a change that sets the value at some keys; the last is the value."""
    *path, last, value = keys

    def change(document: Any) -> None:
        for key in path:
            document = document[key]
        document[last] = value

    return change


def drop(*keys: Any) -> Callable[[Any], None]:
    """Return a change that removes a key."""
    *path, last = keys

    def change(document: Any) -> None:
        for key in path:
            document = document[key]
        del document[last]

    return change


CASES = [
    (put("max_worker", 3), "cluster: .*'max_worker' was unexpected"),
    (put("max_workers", "many"), "max_workers: 'many' is not of type"),
    (put("max_workers", 1), "cluster: .*`max_workers` is smaller"),
    (drop("provider"), "provider: missing; add it"),
    (put("head_node_type", "hed"), "cluster: .*head_node_type` must be one of"),
    (put(TYPES, "chat-gpu", "min_workers", 7), "chat-gpu.min_workers: 7, above max_workers of 6; "),
    (put(TYPES, "chat-gpu", "resources", "GPU", 4), "resources.GPU: 4, and g6e.2xlarge has 1; "),
    (put(TYPES, "ingress", "resources", "GPU", 1), "resources.GPU: 1, and c7i.xlarge has 0; set 0"),
    (put(TYPES, "head", "resources", "CPU", 4), "head.resources.CPU: the head takes replicas; set"),
    (put(TYPES, "head", "node_config", "InstancType", "x"), "InstancType: EC2's .*; correct its"),
    (drop(TYPES, "head", "node_config", "InstanceType"), "node_config.InstanceType: missing; name"),
    (put(TYPES, "ingress", "labels", {"a": "-x-"}), "ingress.labels: .*-x-.*; use the syntax"),
    (drop("setup_commands"), "setup_commands: left out, .*nightly.*; set "),
    (put("docker", "image", "omai-ray"), "docker.image: 'omai-ray' may be another .*; name a ver"),
    (put("docker", "head_image", "r:5000/omai:latest"), "docker.head_image: .* may be another"),
    (put("file_mounts", {}), "file_mounts: the nodes have no token in common; add "),
    (
        put("head_start_ray_commands", ["ray start --head --dashboard-host=127.0.0.1"]),
        "head_start_ray_commands: whoever reaches the port runs code; put RAY_AUTH_MODE=token",
    ),
    (
        put("head_start_ray_commands", 0, "RAY_AUTH_MODE=token ray start --dashboard-host 0.0.0.0"),
        "head_start_ray_commands: the dashboard listens on 0.0.0.0; set --dashboard-host=127",
    ),
    (put("worker_start_ray_commands", []), "worker_start_ray_commands: nothing starts Ray; add"),
    (
        put("head_setup_commands", ["export HF_TOKEN=abcdefgh"]),
        "head_setup_commands.0: the value of HF_TOKEN stands in the file; name a file",
    ),
    (
        put(TYPES, "head", "node_config", "UserData", "AKIAIOSFODNN7EXAMPLE"),
        "UserData: an AWS access key stands in the file; ",
    ),
    (
        put(
            *("provider", "security_group", "IpPermissions"),
            [{"FromPort": 8265, "ToPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
        ),
        "IpPermissions.0: port 8265 is open to everybody; name the network",
    ),
]


@pytest.mark.parametrize(("change", "line"), CASES)
def test_each_mistake_in_a_cluster_is_a_line(
    found: Found, change: Callable[[Any], None], line: str
) -> None:
    """It names the file, the key, and what to do."""
    (only,) = found("cluster.yaml", change)
    assert_line(only, line)


def assert_line(text: str, pattern: str) -> None:
    """One line, of the changed file, that says this."""
    assert re.search(f"^changed.yaml: .*{pattern}", text), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(TYPES, "chat-gpu", "resources", "GPU", 2), "GPU: 2, and a2-highgpu-1g has 1; set 1"),
        (put(TYPES, "head", "node_config", "machinType", "x"), "node_config.machinType: Compute"),
    ],
)
def test_google_clouds_machines_are_known_too(
    found: Found, change: Callable[[Any], None], line: str
) -> None:
    """By their own names."""
    (only,) = found("deployments/cluster-gcp.yaml", change)
    assert_line(only, line)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            put("models", 0, "num_gpus", 2),
            "models.0.num_gpus: 2 asked for, .*offers more than 1; add",
        ),
        (put("models", 0, "num_cpus", 64), "models.0.num_cpus: 64 asked for, .*more than 8; "),
        (
            put("models", 0, "placement", {"omai-pool": "chatt"}),
            "models.0.placement: no node type of .* has the labels omai-pool=chatt; give a node",
        ),
    ],
)
def test_models_that_no_node_can_take_are_found(
    found: Found, change: Callable[[Any], None], line: str
) -> None:
    """Where the cluster is checked together with them."""
    (only,) = found("deployments/config/cluster.yaml", change, "cluster.yaml")
    assert_line(only, line)


def test_more_gpus_than_may_be_started_are_found(found: Found) -> None:
    """Each replica fits a node, but there will never be enough of these."""

    def change(settings: Any) -> None:
        settings["models"][0]["replicas"] = {"min": 9, "max": 9}

    (only,) = found("deployments/config/cluster.yaml", change, "cluster.yaml")
    assert "max_workers: the models always need 9 GPUs, and at most 8 may be started" in only
