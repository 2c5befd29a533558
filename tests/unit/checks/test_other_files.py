"""What is found in settings of the platform, configurations of Serve, and manifests."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.checks import check_files
from omai_ray.cli import main

Found = Callable[..., list[str]]
SETTINGS = "deployments/config/cluster.yaml"
MANIFEST = "deployments/kubernetes/rayservice.yaml"
SERVE = """
proxy_location: EveryNode
http_options: {host: 0.0.0.0, port: 8000}
applications:
  - name: omai
    import_path: deployments.app:app
    args: {config: /etc/omai/platform.yaml}
    deployments:
      - name: ingress
        autoscaling_config: {min_replicas: 1, max_replicas: 2}
        ray_actor_options: {num_cpus: 1, label_selector: {omai-pool: ingress}}
"""


def findings(tmp_path: Path, text: str) -> list[str]:
    """Return what is found in a text, as the lines that the command prints."""
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return [str(found).replace(str(path), "some.yaml") for found in check_files([path])]


def change(*keys: Any) -> Callable[[Any], None]:
    """Return a change that sets the value at some keys; the last is the value."""
    *path, last, value = keys

    def put(document: Any) -> None:
        for key in path:
            document = document[key]
        document[last] = value

    return put


CLUSTER = ("spec", "rayClusterConfig")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("proxy_location", "proxy_locaton", "proxy_locaton: no such key; did you mean proxy_loc"),
        ("host:", "hosts:", "http_options.hosts: no such key; did you mean host"),
        ("max_replicas: 2", "max_replica: 2", "autoscaling_config.max_replica: no such key; did"),
        ("min_replicas: 1", "min_replicas: 3", "autoscaling_config: .*max_replicas.*; correct the"),
        ("port: 8000", "port: eighty", "http_options.port: Input should be .*; correct the value"),
        ("app:app", "app:apps", "import_path: module deployments.app has no 'apps'; correct it"),
        ("deployments.app", "deployment.app", "import_path: .*No module named.*; correct it"),
        ("config: /", "confg: /", "args.confg: no such argument; name a key of the settings"),
        ("EveryNode", "EveryWhere", "proxy_location: Input should be .*; correct the value"),
        (
            "/etc/omai/platform.yaml}",
            "x, database_url: 'postgresql://omai:hunter2@db/omai'}",
            "args.database_url: an address with its password stands in the file; name a variable",
        ),
    ],
)
def test_each_mistake_in_a_configuration_of_serve_is_a_line(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    """Serve's own schema takes most of these."""
    assert [] == findings(tmp_path, SERVE)
    (only,) = findings(tmp_path, SERVE.replace(old, new))
    assert re.search(f"^some.yaml: .*{line}", only), only
    assert "hunter2" not in only


@pytest.mark.parametrize(
    ("applications", "line"),
    [
        ("{name: omai}", "applications: Input should be a valid list; correct the value"),
        ("[omai]", "applications.0: Input should be a valid dictionary .*; correct the value"),
        ("[{import_path: 'deployments.app:app', deployments: [ingress]}]", "applications: Serve"),
    ],
)
def test_applications_of_another_form_are_a_line(
    tmp_path: Path, applications: str, line: str
) -> None:
    """Serve's own validators take the form of some values for granted."""
    (only,) = findings(tmp_path, f"applications: {applications}\n")
    assert re.search(f"^some.yaml: {line}", only), only


def test_an_empty_number_of_replicas_is_kubernetes_default(found: Found) -> None:
    """As the API server reads it."""
    assert [] == found(
        MANIFEST, change(*CLUSTER, "workerGroupSpecs", 2, "minReplicas", None), document=1
    )


def test_gpus_that_serves_configuration_asks_for_are_held_against_the_nodes(
    tmp_path: Path,
) -> None:
    """Of a deployment, by its ray_actor_options."""
    serve = tmp_path / "serve.yaml"
    serve.write_text(
        SERVE.replace("{num_cpus: 1, label_selector: {omai-pool: ingress}}", "{num_gpus: 4}")
    )
    cluster = Path(__file__).resolve().parents[3] / "cluster.yaml"
    (only,) = check_files([serve, cluster])
    assert "deployments.0.ray_actor_options.num_gpus: 4 asked for" in str(only)


@pytest.mark.parametrize(
    ("put", "line"),
    [
        (change(*CLUSTER, "authOptions", {}), "authOptions.mode: whoever .* runs code; set token"),
        (change(*CLUSTER, "rayVersion", "2.9.0"), "rayVersion: 2.9.0, and the image has .*; set"),
        (change(*CLUSTER, "headGroupSpec", "rayStartParams", {}), "num-cpus: the head takes .*; s"),
        (change(*CLUSTER, "workerGroupSpecs", 1, "minReplicas", 9), "minReplicas: 9, above maxRep"),
        (
            change(*CLUSTER, "workerGroupSpecs", 1, "replicas", 9),
            "replicas: 9; choose one from 1 to",
        ),
        (
            change(*CLUSTER, "workerGroupSpecs", 1, "minReplicas", "1"),
            "1.minReplicas: no whole number: '1'; write one, without quotes",
        ),
        (change(*CLUSTER, "workerGroupSpecs", {"a": {}}), "workerGroupSpecs: no list of groups; w"),
        (change("metadata", "x"), "metadata.name: missing; add it"),
        (change(*CLUSTER, "workerGroupSpecs", 1, "minReplica", 1), "1.minReplica: no such key; th"),
        (change(*CLUSTER, "gcsFaultTolerance", {}), "gcsFaultTolerance: no such key; there are: "),
        (change("spec", "rayClusterConfigs", {}), "spec.rayClusterConfigs: no such key; there"),
        (change("spec", "serveConfigV2", "applicatons: []"), "serveConfigV2: applicatons: "),
        (change("metadata", {}), "metadata.name: missing; add it"),
        (
            change(
                *(*CLUSTER, "workerGroupSpecs", 0, "template", "spec", "containers", 0, "image"),
                "omai-ray",
            ),
            "0.template.spec.containers.0.image: 'omai-ray' may be another image tomorrow; name",
        ),
        (
            change(*(*CLUSTER, "gcsFaultToleranceOptions", "redisPassword"), {"value": "hunter2"}),
            "redisPassword.value: the value of redisPassword stands in the file; name a Secret",
        ),
        (
            change(
                *(*CLUSTER, "headGroupSpec", "template", "spec", "containers", 0, "env"),
                [{"name": "OMAI_ADMIN_PASSWORD", "value": "hunter2"}],
            ),
            "env.0.value: the value of OMAI_ADMIN_PASSWORD stands in the file; name a Secret",
        ),
    ],
)
def test_each_mistake_in_a_manifest_is_a_line(
    found: Found, put: Callable[[Any], None], line: str
) -> None:
    """Of the RayService, and of what it carries as text."""
    (only,) = found(MANIFEST, put, document=1)
    assert re.search(f"^changed.yaml: RayService.*: .*{line}", only), only
    assert "hunter2" not in only


def test_a_service_whose_state_ends_with_its_head_is_found(found: Found) -> None:
    """Without a Redis for Ray's own state."""

    def forget(document: Any) -> None:
        del document["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]

    (only,) = found(MANIFEST, forget, document=1)
    assert "gcsFaultToleranceOptions: missing, so the head's end" in only


def test_a_secret_with_its_content_is_found(tmp_path: Path) -> None:
    """It belongs into the cluster alone."""
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\nstringData: {pepper: hunter2}\n"
    lines = findings(tmp_path, text)
    assert any("Secret with its content; make it with kubectl" in line for line in lines)
    assert not any("hunter2" in line for line in lines)


def test_a_kind_that_kuberay_has_not_is_found(tmp_path: Path) -> None:
    """Whoever applies it is told by the cluster only."""
    has = "apiVersion: ray.io/v1\nkind: RayCronJob\nmetadata: {name: x}\n"
    assert not any("KubeRay has no kind" in line for line in findings(tmp_path, has))
    lines = findings(tmp_path, "apiVersion: ray.io/v1\nkind: RayServise\nmetadata: {name: x}\n")
    assert any(
        "kind: KubeRay has no kind 'RayServise'; one of RayService" in line for line in lines
    )


def test_the_settings_inside_a_manifest_are_checked(found: Found) -> None:
    """They are what the pods read."""
    put = change("data", "platform.yaml", "prot: 1")
    (only,) = found(MANIFEST, put, document=0)
    assert re.search("ConfigMap omai-platform: data.platform.yaml: prot: no such key", only)


@pytest.mark.parametrize(
    ("put", "line"),
    [
        (change("prot", 1), "prot: no such key .*; did you mean .port."),
        (
            change("models", 0, "replicas", {"min": 5, "max": 4}),
            "models.0.replicas: .*raise max to 5",
        ),
        (
            change("models", 0, "replicas", "initial", 9),
            "models.0.replicas: .*initial is 9: choose one from",
        ),
        (change("models", 0, "num_gpus", 1.5), "models.0: .*num_gpus is 1.5: take a part of one"),
        (change("models", 0, "gpu_memory_share", 0), "models.0.gpu_memory_share: .*greater than 0"),
        (change("models", 0, "source", "./nowhere"), "models.0.source: .*no directory ./nowhere"),
        (change("models", 0, "source", "builtin:x"), "models.0.source: no built-in model 'x'"),
        (change("aliases", {"a": "nothing"}), "aliases: 'a' points at 'nothing'"),
        (
            change("admin_password", "hunter2"),
            "admin_password: a secret stands in the file; give it",
        ),
        (
            change("database_url", "postgresql://omai:hunter2@db/omai"),
            "database_url: an address with its password stands in the file; give it by the env",
        ),
    ],
)
def test_each_mistake_in_the_settings_is_a_line(
    found: Found, put: Callable[[Any], None], line: str
) -> None:
    """As the start says it."""
    (only,) = found(SETTINGS, put)
    assert re.search(f"^changed.yaml: {line}", only), only
    assert "hunter2" not in only


def test_pickled_weights_are_found(found: Found, tmp_path: Path) -> None:
    """Loading them runs whatever code is in them."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"")
    (only,) = found(SETTINGS, change("models", 0, "source", str(model)))
    assert "models.0.source: " in only
    assert "found pytorch_model.bin, which can run code); convert them" in only


def test_the_command_prints_the_lines_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says so where there is nothing to print."""
    path = tmp_path / "x.yaml"
    path.write_text("port: 70000\nprot: 1\n")
    assert main(["check", str(path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    path.write_text("port: 8000\n")
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == "no mistakes found; files read: 1\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("port: [", "not YAML: "),
        ("made: 2026-02-30", "not YAML: day is out of range"),
        ("- port", "expected keys and values, got a list"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_line_beside_those_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, line: str
) -> None:
    """What was found in the files before it and after it is told all the same."""
    other, path = tmp_path / "other.yaml", tmp_path / "x.yaml"
    other.write_text("prot: 1\n")
    if text is not None:
        path.write_text(text)
    assert main(["check", str(other), str(path), str(other)]) == 1
    told = capsys.readouterr().out
    assert f"{path}: {line}" in told
    assert told.count(": prot: ") == 2
