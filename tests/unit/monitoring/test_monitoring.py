from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import panels
from monitoring.dashboards import DIRECTORY, render
from omai_ray.telemetry import metrics
from tests.programs import require_program
from tests.promql import labels_in, names_in

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "monitoring" / "prometheus"
DOCS = ROOT / "docs" / "monitoring.md"


def rules() -> list[dict[str, Any]]:
    """Return every rule that is shipped."""
    content = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Return what all rules and panels ask."""
    asked = [rule["expr"] for rule in rules()]
    for dashboard in panels.ALL:
        asked += [query.expression for panel in dashboard.panels for query in panel.queries]
    return asked


def promtool(*arguments: str) -> str:
    """Return what promtool says; fail where it finds anything wrong."""
    require_program("promtool", package="prometheus")
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_committed_dashboards_are_those_of_the_module() -> None:
    """`python -m monitoring.dashboards` was run after the last change."""
    committed = {path.name: path.read_text() for path in DIRECTORY.glob("*.json")}
    assert committed == {f"{each.uid}.json": render(each) for each in panels.ALL}


def test_there_is_a_dashboard_for_each_part() -> None:
    """Each opens with graphs, and its queries have letters of their own."""
    parts = {"overview", "chat", "embeddings", "quota", "bulk", "cost"}
    assert {each.uid.removeprefix("omai-") for each in panels.ALL} == parts
    for path in DIRECTORY.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["panels"]
        assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml")],
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    """Prometheus itself reads the files."""
    assert "SUCCESS" in promtool(*arguments)


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """Promtool plays rules_test.yml to them, which has every alert in it."""
    promtool("test", "rules", "rules_test.yml")
    content = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())
    fired = {
        case["alertname"]
        for test in content["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def test_what_is_asked_of_our_metrics_is_what_they_have() -> None:
    """A name, or a label, that no longer is would leave a graph empty and an alert silent."""
    own = {metric.series: metric for metric in metrics.ALL}
    for expression in expressions():
        for name in names_in(expression):
            if name.startswith(("ray_omai_", "ray_gen_ai_")):
                has = {*own[name].labels, *(["le"] if own[name].kind == "histogram" else [])}
                assert labels_in(expression) <= has, expression


def test_every_metric_is_shown_somewhere() -> None:
    """What nobody looks at need not be measured."""
    asked = set().union(*(names_in(expression) for expression in expressions()))
    assert {metric.series for metric in metrics.ALL} <= asked


def test_the_table_of_the_docs_has_every_metric() -> None:
    """Name, kind, unit and labels are those of the module."""
    rows = re.findall(
        r"^\| `(ray_(?:omai|gen_ai)_\w+)` \| (.*?) \| (.*?) \| (.*?) \|", DOCS.read_text(), re.M
    )
    written = {
        (name, kind, unit, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, unit, labels in rows
    }
    assert written == {
        (metric.series.removesuffix("_bucket"), metric.kind, metric.unit, metric.labels)
        for metric in metrics.ALL
    }


def test_the_docs_say_of_every_alert_what_to_do() -> None:
    """Under the alert's own name."""
    described = set(re.findall(r"^\| `(OMAi\w+)` \|", DOCS.read_text(), re.M))
    assert described == {rule["alert"] for rule in rules() if "alert" in rule}
