"""The running platform as Prometheus, and `omai-ray top`, see it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prometheus_server import Prometheus, run_prometheus
from tests.promql import labels_in, names_in
from tests.ray.test_command import COMMAND, address, serving
from tests.unit.monitoring.test_monitoring import expressions

pytestmark = pytest.mark.timeout(1800)  # of the first test, which starts the platform for all
PATIENCE_S = 300.0
ROWS = 20_000
# Series of Ray's own that exist only where there is a GPU.
NOT_HERE = {"ray_node_gpus_utilization"}
PLATFORM = """
models:
  - {name: omai-gpt-4, task: chat, source: unused, num_cpus: 0.2, price: {input: 1, output: 2}}
  - {name: text-embedding-ada-002, task: embedding, source: unused, num_cpus: 0.2}
tiers:
  tiny: {requests_per_minute: 1, tokens_per_minute: null}
  large: {requests_per_minute: 100000, tokens_per_minute: null}
"""
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACED = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
CHAT = {"model": "omai-gpt-4", "messages": [{"role": "user", "content": "Hello " * 40}]}
LONG = CHAT | {"stream": True, "max_tokens": 1500, "logit_bias": {"70": 100}}


@dataclass(frozen=True)
class Watched:
    """A platform with a Prometheus that scrapes it."""

    prometheus: Prometheus
    state_dir: Path
    traces: Path


@pytest.fixture(scope="module")
def watched(
    tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """Run both, and let the platform have traffic of every kind."""
    root = tmp_path_factory.mktemp("watched")
    config, state_dir = root / "platform.yaml", root / "state"
    config.write_text(f"{PLATFORM}telemetry: {{traces: {root / 'traces'}, traces_ratio: 0}}\n")
    with ExitStack() as stack:
        process = stack.enter_context(
            serving(state_dir, tiny_models, "--config", str(config), dashboard=True)
        )
        url = address(process)
        cluster = json.loads((state_dir / "cluster.json").read_text())
        targets = cluster["metrics_targets"]
        prometheus = stack.enter_context(run_prometheus(root / "prometheus", targets))
        cause_everything(url, config, state_dir)
        bulk(root, config, state_dir, tiny_models[1])
        yield Watched(prometheus, state_dir, root / "traces")
        process.terminate()
        process.wait(60)


def create_key(config: Path, state_dir: Path, tier: str) -> str:
    """Return a new account's key."""
    arguments = ["--config", str(config), "--state-dir", str(state_dir), "--tier", tier, "--quiet"]
    done = subprocess.run(
        [COMMAND, "keys", "create", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def cause_everything(url: str, config: Path, state_dir: Path) -> None:
    """Send requests that are answered, refused, unknown and left."""

    def client(key: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=url, headers=headers, timeout=60)

    with client(create_key(config, state_dir, "large")) as large:
        for headers in ({}, {}, TRACED):
            answer = large.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 200
        embedding = {"model": "text-embedding-ada-002", "input": ["Hello", "Hello world"]}
        assert large.post("/v1/embeddings", json=embedding).status_code == 200
        with large.stream("POST", "/v1/chat/completions", json=LONG) as response:
            assert next(response.iter_lines()).startswith("data: ")
    with client(create_key(config, state_dir, "tiny")) as tiny:
        statuses = [tiny.post("/v1/embeddings", json=embedding).status_code for _ in range(3)]
    assert statuses.count(429) >= 1
    with client("omai-sk-wrong") as stranger:
        assert stranger.get("/v1/models").status_code == 401


def bulk(root: Path, config: Path, state_dir: Path, model: Path) -> None:
    """Embed a corpus that takes long enough to tell when it ends; one row of it cannot be."""
    texts = ["hello world"] * (ROWS - 1) + [None]
    pq.write_table(pa.table({"text": texts}), root / "corpus.parquet")
    arguments: list[Any] = [root / "corpus.parquet", root / "vectors", "--column", "text"]
    arguments += ["--model", model, "--address", state_dir, "--max-dead", "1"]
    done = subprocess.run(
        [COMMAND, "embed", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_series_that_is_asked_for_is_scraped(watched: Watched) -> None:
    """Dashboards and rules read nothing that a running platform does not have."""
    asked = set().union(*(names_in(expression) for expression in expressions())) - NOT_HERE
    deadline = time.monotonic() + PATIENCE_S
    while missing := asked - watched.prometheus.labels_of_series().keys():
        assert time.monotonic() < deadline, f"never scraped: {sorted(missing)}"
        time.sleep(1)
    found = watched.prometheus.labels_of_series()
    for expression in expressions():
        for name in names_in(expression) - NOT_HERE:
            assert labels_in(expression) <= found[name], (name, expression)


def test_every_panel_can_be_drawn_and_every_rule_evaluated(watched: Watched) -> None:
    """Prometheus takes all queries."""
    for expression in expressions():
        query = expression.replace("$__rate_interval", "1m")
        watched.prometheus.ask("query", query=query)
    groups = watched.prometheus.ask("rules")["groups"]
    assert groups
    assert all(rule["health"] in ("ok", "unknown") for g in groups for rule in g["rules"])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('sum(ray_omai_finished_total{reason="length"} or vector(0)) >= bool 0', 1),
        ("sum(ray_omai_cancellations_total)", 1),
        ('sum(ray_omai_admission_refusals_total{tier="tiny",reason="requests"}) > bool 0', 1),
        ("sum(ray_omai_auth_failures_total)", 1),
        ("sum(ray_omai_limiter_fallbacks_total)", 0),
        ('sum(ray_omai_bulk_rows_total{gen_ai_request_model="other"})', ROWS),
        ("sum(ray_omai_bulk_dead_letters_total)", 1),
        ("sum(ray_omai_bulk_jobs or vector(0))", 0),
        ("sum(ray_omai_cost_total) > bool 0", 1),
        ("sum(ray_omai_engine_prefix_hit_tokens_total) > bool 0", 1),
        ('sum(ray_gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="chat"})', 3),
    ],
)
def test_the_numbers_are_those_of_the_traffic(
    watched: Watched, query: str, expected: float
) -> None:
    """What was sent is what is counted."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        result = watched.prometheus.ask("query", query=query)["result"]
        value = float(result[0]["value"][1]) if result else None
        if value == expected:
            return
        assert time.monotonic() < deadline, f"{query} is {value}"
        time.sleep(1)


def test_top_shows_the_running_platform(watched: Watched) -> None:
    """It finds the cluster by its state directory."""
    arguments = ["top", "--once", "--window", "1", "--state-dir", str(watched.state_dir)]
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ingress 1 of 1" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("omai-gpt-4"))
    assert row.split()[-1].endswith("%")  # of prompts that were cached


def test_a_trace_goes_from_the_edge_to_the_engine(watched: Watched) -> None:
    """All spans are of the client's trace, and other requests have none."""
    deadline = time.monotonic() + PATIENCE_S
    while not {"queue", "prefill", "decode"} <= {span["name"] for span in spans(watched.traces)}:
        assert time.monotonic() < deadline, [span["name"] for span in spans(watched.traces)]
        time.sleep(1)
    found = spans(watched.traces)
    assert {span["context"]["trace_id"] for span in found} == {f"0x{TRACE_ID}"}
    by_id = {span["context"]["span_id"]: span for span in found}
    path = []
    span: dict[str, Any] | None = next(span for span in found if span["name"] == "prefill")
    while span is not None:
        path.append(span["name"])
        span = by_id.get(span["parent_id"])
    assert path == [
        "prefill",
        "replica_handle_request model-omai-gpt-4 answer",
        "route_to_replica model-omai-gpt-4 answer",
        "POST /v1/chat/completions",
    ]
    assert any(span["name"].startswith("proxy_http_request") for span in found)


def spans(directory: Path) -> list[dict[str, Any]]:
    """Return every span that was written."""
    lines = [line for file in directory.glob("*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]
