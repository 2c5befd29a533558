"""What is shipped for clusters, as a whole."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.checks import check_files
from omai_ray.cli import build_parser
from omai_ray.cli.serve import _serve_settings as settings_of_command
from omai_ray.settings import CONFIG_VARIABLE, load_settings

ROOT = Path(__file__).resolve().parents[3]
CLUSTERS = ("cluster.yaml", "deployments/cluster-gcp.yaml")
MANIFEST = "deployments/kubernetes/rayservice.yaml"
CONFIGS = sorted(path.name for path in (ROOT / "deployments/config").glob("*.yaml"))


def parsed(name: str) -> list[Any]:
    """Return a file's documents."""
    return list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")))


def test_nothing_is_found_in_what_is_shipped() -> None:
    """All of it together, so that the models fit each of the clusters."""
    configs = [f"deployments/config/{name}" for name in CONFIGS]
    assert [] == check_files(ROOT / name for name in (*CLUSTERS, MANIFEST, *configs))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_loads(name: str) -> None:
    """With what the environment has to give."""
    environment = {"OMAI_REDIS_URL": "redis://r"} if name == "cluster.yaml" else {}
    settings = load_settings(ROOT / "deployments/config" / name, environment=environment)
    assert settings.models


def test_the_two_clouds_are_twins() -> None:
    """The same groups and labels, started by the same commands."""
    (aws,), (gcp,) = (parsed(name) for name in CLUSTERS)
    for key in ("docker", "file_mounts", "head_start_ray_commands", "worker_start_ray_commands"):
        assert aws[key] == gcp[key]
    labels = [
        {name: node.get("labels") for name, node in cluster["available_node_types"].items()}
        for cluster in (aws, gcp)
    ]
    assert labels[0] == labels[1]


def test_kubernetes_has_the_settings_of_the_clusters() -> None:
    """One configuration, whatever starts Ray."""
    settings = parsed(MANIFEST)[0]["data"]["platform.yaml"]
    assert yaml.safe_load(settings) == parsed("deployments/config/cluster.yaml")[0]


def test_the_image_is_pinned_and_is_not_run_by_root() -> None:
    """A version of the base, the tested versions in it, a user."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM python:3\.11\.\d+-slim-\w+", base)
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER omai"
    (install,) = [line for line in lines if '".[$EXTRAS]"' in line]
    assert "--constraint constraints.txt" in install
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} == {line for line in ignored if line[0] == "!"}
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_what_others_run_in_it() -> None:
    """`ray up` its ssh, rsync and ps; KubeRay's probes wget, without which no pod becomes ready."""
    (installed,) = re.findall(r"apt-get install [^&]*", (ROOT / "Dockerfile").read_text("utf-8"))
    assert {"openssh-client", "procps", "rsync", "wget"} <= set(installed.split())


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_metrics_of_every_node_are_where_the_docs_say(name: str, key: str) -> None:
    """Ray would take any free port, which no Prometheus knows."""
    (start,) = [command for command in parsed(name)[0][key] if "ray start" in command]
    assert "--metrics-export-port=8080" in start.split()


def test_pods_let_prometheus_in_to_their_metrics_and_nothing_else() -> None:
    """By the namespace that it is in; KubeRay has the metrics on 8080."""
    policy = parsed(MANIFEST)[2]
    label = {"kubernetes.io/metadata.name": "monitoring"}
    (rule,) = [
        rule
        for rule in policy["spec"]["ingress"]
        if rule["from"] == [{"namespaceSelector": {"matchLabels": label}}]
    ]
    assert [{"protocol": "TCP", "port": 8080}] == rule["ports"]


def image_environment() -> dict[str, str]:
    """Return what the image sets."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"(?m)^ENV (.*)$", text)
    return dict(pair.split("=", 1) for pair in line.split())


def test_the_image_alone_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own command names no file that it lacks: it has the built-in models, on every address."""
    (command,) = re.findall(r"(?m)^CMD (.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    program, *arguments = json.loads(command)
    assert "omai-ray" == program
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    for name, value in image_environment().items():
        monkeypatch.setenv(name, value)
    settings = settings_of_command(build_parser().parse_args(arguments))
    assert ("0.0.0.0", "/var/lib/omai") == (settings.host, str(settings.state_dir))
    assert all(model.source.startswith("builtin:") for model in settings.models)


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_container_of_a_cluster_is_told_the_settings(name: str) -> None:
    """In a file that is copied to every node."""
    (cluster,) = parsed(name)
    (option,) = [option for option in cluster["docker"]["run_options"] if CONFIG_VARIABLE in option]
    flag, _, given = option.partition(" ")
    variable, _, path = given.partition("=")
    assert ("--env", CONFIG_VARIABLE) == (flag, variable)
    assert str(Path(path).parent) in cluster["file_mounts"]


def test_every_pod_is_told_the_settings() -> None:
    """In the file that the ConfigMap is mounted as, which the application is given too."""
    configmap, service, _ = parsed(MANIFEST)
    spec = service["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    groups = [spec["rayClusterConfig"]["headGroupSpec"]]
    groups += spec["rayClusterConfig"]["workerGroupSpecs"]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        (variable,) = container["env"]
        assert {"name": CONFIG_VARIABLE, "value": application["args"]["config"]} == variable
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == str(Path(variable["value"]).parent)
        assert Path(variable["value"]).name in configmap["data"]


def test_the_images_version_is_the_packages() -> None:
    """In every file that names the image."""
    pattern = re.compile(r"registry\.example\.com/omai-ray:([0-9.]+)")
    for name in (*CLUSTERS, MANIFEST, "Dockerfile"):
        assert {version("omai-ray")} == set(pattern.findall((ROOT / name).read_text("utf-8")))
