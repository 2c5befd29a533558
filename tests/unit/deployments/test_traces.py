from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments import traces
from deployments.traces import GenerationSpans, environment, processors
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import ConfigError
from omai_ray.settings import TelemetrySettings, load_settings
from tests.programs import require_module

JOB = ChatJob("use_1", [1, 2, 3], 12)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Return what the platform's tracer exports, for this test only."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def test_an_engines_work_is_below_the_span_it_runs_in(exported: InMemorySpanExporter) -> None:
    """Queue, prefill and decode follow each other without a gap, and no text is in them."""
    with trace.get_tracer("test").start_as_current_span("replica") as replica:
        spans = GenerationSpans("omai-gpt-4", JOB)
        spans.gained([ChatDelta(0, "canary-text", tokens=1, queued_s=0.0)])
        spans.gained([ChatDelta(0, "canary-text", tokens=4, finish="stop")])
        spans.end()
    queue, prefill, decode, outer = exported.get_finished_spans()
    assert [queue.name, prefill.name, decode.name] == ["queue", "prefill", "decode"]
    for span in (queue, prefill, decode):
        assert span.parent is not None
        assert span.parent.span_id == replica.get_span_context().span_id
    assert (queue.end_time, prefill.end_time) == (prefill.start_time, decode.start_time)
    assert outer.attributes is not None
    assert outer.attributes["gen_ai.request.model"] == "omai-gpt-4"
    assert outer.attributes["gen_ai.usage.input_tokens"] == 3
    assert outer.attributes["gen_ai.usage.output_tokens"] == 5
    assert "canary-text" not in outer.to_json()


def test_nothing_is_made_where_nothing_is_recorded(exported: InMemorySpanExporter) -> None:
    """As in every request while traces are off."""
    spans = GenerationSpans("omai-gpt-4", JOB)
    spans.gained([ChatDelta(0, tokens=1)])
    spans.end()
    assert exported.get_finished_spans() == ()


def test_traces_are_off_unless_settings_say_where_to(tmp_path: Path) -> None:
    """By default no process finds anything of them in its environment."""
    assert environment(TelemetrySettings()) == {}
    found = environment(TelemetrySettings(traces=str(tmp_path), traces_ratio=0.5))
    assert found["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"] == "deployments.traces:processors"
    assert found["RAY_SERVE_TRACING_SAMPLING_RATIO"] == "0.5"


def test_a_directory_gets_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of each process; the directory is its owner's alone."""
    directory = tmp_path / "traces"
    monkeypatch.setenv(traces.VARIABLE, str(directory))
    provider = TracerProvider()
    for processor in processors():
        provider.add_span_processor(processor)
    with provider.get_tracer("test").start_as_current_span("one"):
        pass
    provider.shutdown()
    (file,) = directory.iterdir()
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["one"]
    assert directory.stat().st_mode & 0o777 == 0o700


def test_an_endpoint_gets_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are posted to /v1/traces, as collectors have it."""
    require_module("opentelemetry.exporter.otlp", extra="otel")
    paths: list[str] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(traces.VARIABLE, f"http://127.0.0.1:{server.server_port}/")
    provider = TracerProvider()
    for processor in processors():
        provider.add_span_processor(processor)
    with provider.get_tracer("test").start_as_current_span("one"):
        pass
    provider.shutdown()
    server.shutdown()
    thread.join()
    server.server_close()
    assert paths == ["/v1/traces"]


def test_an_endpoint_without_its_exporter_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the key, the value and the remedy."""
    monkeypatch.setattr(traces, "_is_installed", lambda _: False)
    with pytest.raises(ConfigError, match=r"telemetry.traces: http://c:4318 .*omai-ray\[otel\]"):
        environment(TelemetrySettings(traces="http://c:4318"))


@pytest.mark.parametrize("value", ["grpc://c:4317", ""])
def test_what_is_neither_endpoint_nor_directory_is_refused(tmp_path: Path, value: str) -> None:
    """The start ends with the file and the key."""
    config = tmp_path / "platform.yaml"
    config.write_text(f"telemetry: {{traces: '{value}'}}\n")
    with pytest.raises(ConfigError, match=r"platform.yaml: telemetry.traces: "):
        load_settings(config, environment={})
