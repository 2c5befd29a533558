"""Several Ray nodes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray import multi_node

PATIENCE_S = 600
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(PATIENCE_S + 20)
def test_a_node_killed_under_load_fails_only_what_ran_there(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each of those with an error in the envelope; the rest is answered, and replicas come back."""
    done = subprocess.run(
        [sys.executable, "-m", multi_node.__name__, str(tiny_models[0]), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / multi_node.REPORT).read_text())

    assert len(set(report["before"]["ingress"])) >= 2
    assert len(set(report["before"]["chat"])) == 2
    assert report["victim"] in report["before"]["chat"]
    assert report["not_enveloped"] == []
    assert report["failed_later"] == []
    assert 0 < report["failed_in_flight"] < report["in_flight"]
    assert report["recorded"] <= report["sent"]
    assert len(report["after"]["chat"]) == 2
    assert report["victim"] not in report["after"]["chat"]
