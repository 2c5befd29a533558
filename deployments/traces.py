"""OpenTelemetry traces, through the hook that Serve has for them; off unless settings say where to.

Serve itself makes the spans of its proxy, router and replicas, and carries W3C's traceparent from
one to the next. Here is where spans go, and what an engine did meanwhile.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span

from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import ConfigError
from omai_ray.settings import TelemetrySettings

VARIABLE = "OMAI_TRACES"
_HOOK = "deployments.traces:processors"
_OTLP = "opentelemetry.exporter.otlp.proto.http"


def environment(settings: TelemetrySettings) -> dict[str, str]:
    """Return what every process of Serve finds in its environment, so that it traces; none if off.

    Raises ConfigError for an endpoint whose exporter is not installed.
    """
    if settings.traces is None:
        return {}
    if _is_endpoint(settings.traces) and not _is_installed(_OTLP):
        raise ConfigError(
            f"telemetry.traces: {settings.traces} needs OpenTelemetry's exporter: "
            "pip install 'omai-ray[otel]', or give a directory"
        )
    return {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": _HOOK,
        "RAY_SERVE_TRACING_SAMPLING_RATIO": str(settings.traces_ratio),
        VARIABLE: settings.traces,
    }


def processors() -> list[SpanProcessor]:
    """Return where this process's spans go; Serve calls it."""
    target = os.environ[VARIABLE]
    if not _is_endpoint(target):
        return [BatchSpanProcessor(FileExporter(Path(target)))]
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return [BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{target.rstrip('/')}/v1/traces"))]


def _is_endpoint(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


class FileExporter(SpanExporter):
    """Appends spans to a file of this process in a directory: one JSON object a line."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = directory / f"{os.getpid()}.jsonl"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write spans."""
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(span.to_json(indent=None) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


class GenerationSpans:
    """What the engine did for a job: queue, prefill and decode, below the span that it runs in.

    Costs next to nothing where that one is not recorded.
    """

    def __init__(self, model: str, job: ChatJob) -> None:
        self._span = trace.get_current_span()
        self._tracer = trace.get_tracer("omai_ray")
        self._recorded = self._span.is_recording()
        self._began_ns = time.time_ns()
        self._first_ns: int | None = None
        self._tokens = 0
        if self._recorded:
            self._span.set_attributes(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "omai",
                    "gen_ai.request.model": model,
                    "gen_ai.request.max_tokens": job.max_new_tokens,
                    "gen_ai.usage.input_tokens": len(job.prompt_ids),
                }
            )

    def gained(self, deltas: list[ChatDelta]) -> None:
        """Take note of what choices gained."""
        if not self._recorded:
            return
        self._tokens += sum(delta.tokens for delta in deltas)
        if self._first_ns is None:
            age_s = max((delta.age_s for delta in deltas), default=0.0)
            self._first_ns = time.time_ns() - int(age_s * 1e9)
            queued_s = max((delta.queued_s or 0.0 for delta in deltas), default=0.0)
            begun_ns = min(self._began_ns + int(queued_s * 1e9), self._first_ns)
            self._child("queue", self._began_ns, begun_ns)
            self._child("prefill", begun_ns, self._first_ns)

    def end(self) -> None:
        """Say that the job has ended, however it did."""
        if self._recorded and self._first_ns is not None:
            self._child("decode", self._first_ns, time.time_ns())
            self._span.set_attribute("gen_ai.usage.output_tokens", self._tokens)

    def _child(self, name: str, began_ns: int, ended_ns: int) -> None:
        context = trace.set_span_in_context(self._span)
        span: Span = self._tracer.start_span(name, context, start_time=began_ns)
        span.end(ended_ns)
