from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from omai_ray.cli import main
from omai_ray.cli.scrape import Scrape, between, quantile
from omai_ray.telemetry import metrics
from tests.peers import OK, peer

MODEL = {metrics.MODEL: "omai-gpt-4"}
TIERED = MODEL | {metrics.TIER: "pro"}
TTFT = metrics.TIME_TO_FIRST_TOKEN.series


def taken(at_s: float, tokens: float, first: tuple[float, float, float]) -> Scrape:
    """Return a scrape of one model: two replicas, tokens written, TTFT up to 0.1 s, 1 s, any."""
    bounds = ("0.1", "1.0", "+Inf")
    return Scrape(
        at_s,
        {
            metrics.ENGINE_RUNNING.series: [(MODEL | {"WorkerId": w}, 2) for w in "ab"],
            metrics.ENGINE_WAITING.series: [(MODEL, 1)],
            metrics.TOKENS.series: [(TIERED | {metrics.TOKEN_TYPE: "output"}, tokens)],
            metrics.KV_USE.series: [
                (MODEL | {"WorkerId": w}, u) for w, u in (("a", 0.2), ("b", 0.6))
            ],
            metrics.PREFIX_TOKENS.series: [(MODEL, 100)],
            metrics.PREFIX_HIT_TOKENS.series: [(MODEL, 25)],
            metrics.REQUESTS.series: [
                ({metrics.ROUTE: "/v1/models", metrics.STATUS: "200"}, tokens),
                ({metrics.ROUTE: "/v1/models", metrics.STATUS: "503"}, tokens / 10),
            ],
            TTFT: [(TIERED | {"le": le}, count) for le, count in zip(bounds, first, strict=True)],
            "ray_serve_deployment_replica_healthy": [({"deployment": "ingress"}, 1)],
            "ray_serve_autoscaling_target_replicas": [({"deployment": "ingress"}, 2)],
        },
    )


def test_rates_are_of_the_time_between_and_sums_of_all_replicas() -> None:
    """A model's replicas are added up, room for keys and values is that of the fullest."""
    now = between(taken(0, 100, (10, 10, 10)), taken(10, 200, (10, 20, 20)))
    (model,) = now.models
    assert (model.name, model.running, model.waiting) == ("omai-gpt-4", 4, 1)
    assert (model.output_per_s, model.input_per_s) == (10, 0)
    assert (model.kv_use, model.cached) == (0.6, 0.25)
    assert now.requests_per_s == pytest.approx(11)
    assert now.failed_per_s == pytest.approx(1)
    assert now.replicas == {"ingress": (1, 2)}


def test_times_are_of_the_window_or_of_all_time_where_it_is_empty() -> None:
    """The ten requests of the window took longer than those before."""
    busy = between(taken(0, 0, (10, 10, 10)), taken(10, 0, (10, 20, 20))).models[0]
    idle = between(taken(0, 0, (10, 20, 20)), taken(10, 0, (10, 20, 20))).models[0]
    assert busy.first_token_p50_s == pytest.approx(0.55)
    assert idle.first_token_p50_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("part", "expected"), [(0.25, 0.05), (0.5, 0.1), (0.75, 0.55), (0.99, 0.982)]
)
def test_a_quantile_is_linear_within_its_bucket(part: float, expected: float) -> None:
    """As histogram_quantile of Prometheus has it."""
    assert quantile(part, {0.1: 10, 1.0: 20, math.inf: 20}) == pytest.approx(expected)


def test_a_quantile_beyond_the_last_bound_is_that_bound_and_of_nothing_is_none() -> None:
    """Nothing is made up."""
    assert quantile(0.9, {0.1: 1, math.inf: 10}) == 0.1
    assert quantile(0.5, {0.1: 0, math.inf: 0}) is None
    assert quantile(0.5, {}) is None


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Return the URL of metrics with one model in them."""
    text = (
        "# TYPE ray_omai_engine_running gauge\n"
        'ray_omai_engine_running{gen_ai_request_model="omai-gpt-4"} 3\n'
        "# TYPE ray_omai_requests_active gauge\n"
        "ray_omai_requests_active 5\n"
    )

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    thread.join()
    server.server_close()


def test_once_prints_a_table_and_leaves(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It works where stdout is no terminal, as in a script."""
    assert main(["top", "--once", "--window", "0.1", "--metrics-url", endpoint]) == 0
    printed = capsys.readouterr().out
    assert "5 requests at work" in printed
    row = next(line for line in printed.splitlines() if line.startswith("omai-gpt-4"))
    assert row.split() == ["omai-gpt-4", "3", "0", "0.0", "0.0", "-", "-", "-", "-"]


def test_where_nothing_runs_it_says_so_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, status 1."""
    assert main(["top", "--once", "--state-dir", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no `omai-ray serve` runs with the state" in told
    assert "--metrics-url" in told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:9/metrics", "does not answer"),
        ("127.0.0.1:8080", "expected http://HOST:PORT/metrics"),
        ("http://127.0.0.1:port/metrics", "does not answer"),
        ("http://[::1/metrics", "does not answer"),
    ],
)
def test_an_endpoint_that_is_none_is_named(
    url: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the URL."""
    assert main(["top", "--once", "--metrics-url", url]) == 1
    line = capsys.readouterr().err
    assert url in line
    assert told in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "resets", "told"),
    [
        (OK + b"\r\n<!doctype html>\n<html></html>\n", False, "answers, and not with metrics"),
        (OK + b"\r\n{}", False, "answers, and not with metrics"),
        (OK + b'\r\n{le="1e1,le=", =NaN', False, "answers, and not with metrics"),
        (OK + b"\r\n\xff\xfe", False, "answers, and not with metrics"),
        (OK + b"Content-Length: 99\r\n\r\na 1\n", False, "does not answer (IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, "does not answer ("),
        (b"", True, "does not answer ("),
    ],
)
def test_an_endpoint_that_is_another_one_is_named(
    answer: bytes, resets: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dashboard, or a port that speaks no HTTP: one line."""
    with peer(answer, resets=resets) as address:
        assert main(["top", "--once", "--metrics-url", f"http://{address}/metrics"]) == 1
    line = capsys.readouterr().err
    assert f"http://{address}/metrics {told}" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("window", ["0", "-1", "soon", "1e9"])
def test_a_window_must_be_some_time(window: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no duration is refused by the parser."""
    with pytest.raises(SystemExit):
        main(["top", "--once", "--window", window])
    assert "expected seconds" in capsys.readouterr().err
