"""Whatever stands where something else belongs, a check ends with its findings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.checks import check_documents, ray_cluster
from deployments.checks.documents import documents_of, read_documents
from deployments.checks.finding import Findings
from tests.unit.checks.test_other_files import SERVE

ROOT = Path(__file__).resolve().parents[3]
OTHERS = ("x", 7, float("inf"), None, ["x"], {"x": "y"}, {1: [2]})


def replaced(node: Any) -> Iterator[Any]:
    """Yield copies of a tree, in each one node replaced by one of OTHERS."""
    yield from OTHERS
    keys = node if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0)
    for key in keys:
        for inner in replaced(node[key]):
            outer = copy.copy(node)
            outer[key] = inner
            yield outer


def documents(name: str) -> list[Any]:
    """Return a shipped file's documents, a manifest's without the groups that are like another."""
    if name == "serve":
        return [yaml.safe_load(SERVE)]
    found = list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")))
    for document in found:
        if document.get("kind") == "RayService":
            del document["spec"]["rayClusterConfig"]["workerGroupSpecs"][1:]
    return found


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("cluster.yaml", "deployments/config/cluster.yaml"),
        ("deployments/cluster-gcp.yaml", "deployments/config/cluster.yaml"),
        ("deployments/config/cluster.yaml", "cluster.yaml"),
        ("deployments/kubernetes/rayservice.yaml", "deployments/config/cluster.yaml"),
        ("serve", "cluster.yaml"),
    ],
)
def test_no_mistake_ends_a_check_in_a_traceback(
    name: str, beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node of what is shipped replaced by others, and held against models or a cluster."""
    # Ray's own check takes most of the time, and whatever it raises is a finding.
    monkeypatch.setattr(ray_cluster, "_check_schema", lambda *_: None)
    others = read_documents(ROOT / beside, Findings())
    for document in documents(name):
        for changed in replaced(document):
            findings = Findings()
            check_documents([*documents_of(changed, "some.yaml", findings), *others], findings)
            assert all("\n" not in str(finding) for finding in findings.items)
