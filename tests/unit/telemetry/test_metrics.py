from __future__ import annotations

import re
from typing import Any

from omai_ray.telemetry import metrics
from omai_ray.telemetry.recorder import MOST_VALUES, Exporter, InstrumentSink, Recorder
from tests.memory_sink import Memory


def test_names_are_prometheus_names_and_unique() -> None:
    """Ray discards a metric whose name Prometheus does not take."""
    names = [metric.name for metric in metrics.ALL]
    assert len(names) == len(set(names))
    for metric in metrics.ALL:
        for name in (metric.name, *metric.labels):
            assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name)
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_no_label_names_a_key_an_account_or_a_request() -> None:
    """Those have values without end, and a key's id is nobody's business."""
    labels = {label for metric in metrics.ALL for label in metric.labels}
    assert labels == {
        metrics.MODEL,
        metrics.OPERATION,
        metrics.TOKEN_TYPE,
        metrics.ROUTE,
        metrics.STATUS,
        metrics.TIER,
        metrics.REASON,
        metrics.RESULT,
        metrics.BATCH_STATUS,
    }


def test_a_model_outside_the_catalog_has_one_name_for_all() -> None:
    """Directories and hub ids would make a series each."""
    assert metrics.model_label("omai-gpt-4", {"omai-gpt-4"}) == "omai-gpt-4"
    assert metrics.model_label("/home/ada/model", {"omai-gpt-4"}) == "other"


def test_counters_are_added_up_between_flushes() -> None:
    """What is flushed is gone; what comes later is added to it by the sink."""
    recorder, memory = Recorder(), Memory()
    recorder.count(metrics.COST, 0.5, "m", "pro")
    recorder.count(metrics.COST, 0.25, "m", "pro")
    recorder.flush(memory)
    recorder.flush(memory)
    recorder.count(metrics.COST, 1, "m", "pro")
    recorder.flush(memory)
    assert memory.counts == {("omai_cost", "m", "pro"): 1.75}


def test_a_total_counts_its_growth_and_never_shrinks() -> None:
    """A unit that is done again makes a job's total go back; a counter must not."""
    recorder, memory = Recorder(), Memory()
    for total in (10, 4, 12):
        recorder.count_to(metrics.BULK_ROWS, total, "m")
        recorder.flush(memory)
    assert memory.counts == {("omai_bulk_rows", "m"): 12}


def test_a_counter_of_zero_begins_its_series() -> None:
    """Otherwise Prometheus sees the first event as the beginning, and not as an increase."""
    recorder, memory = Recorder(), Memory()
    recorder.count(metrics.LIMITER_FALLBACKS, 0)
    recorder.flush(memory)
    assert memory.counts == {("omai_limiter_fallbacks",): 0}


def test_gauges_stay_and_values_go() -> None:
    """A gauge is handed on at every flush, a histogram's value once."""
    recorder, memory = Recorder(), Memory()
    recorder.set(metrics.KV_USE, 0.5, "m")
    recorder.observe(metrics.QUEUE_TIME, 0.1, "m")
    recorder.observe(metrics.QUEUE_TIME, 0.2, "m")
    recorder.flush(memory)
    again = Memory()
    recorder.flush(again)
    assert memory.values == {("omai_queue_time_seconds", "m"): [0.1, 0.2]}
    assert (again.gauges, again.values) == ({("omai_engine_kv_use_ratio", "m"): 0.5}, {})


def test_values_are_bounded_where_nobody_takes_them() -> None:
    """A sink that hangs must not fill the memory."""
    recorder, memory = Recorder(), Memory()
    for _ in range(MOST_VALUES + 1):
        recorder.observe(metrics.QUEUE_TIME, 0.1, "m")
    recorder.flush(memory)
    assert len(memory.values["omai_queue_time_seconds", "m"]) == MOST_VALUES


def test_an_exporter_samples_and_flushes_at_its_end() -> None:
    """What comes shortly before the end of a process is not lost, even where sampling failed."""
    recorder, memory = Recorder(), Memory()
    calls: list[int] = []

    def sample() -> None:
        calls.append(1)
        recorder.set(metrics.ENGINE_RUNNING, 3, "m")

    exporter = Exporter(recorder, memory, sample, interval_s=3600)
    exporter.close()
    assert calls == [1]
    assert memory.gauges == {("omai_engine_running", "m"): 3}


class Library:
    """What ray.util.metrics has, noting what is made and called."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.calls: list[tuple[Any, ...]] = []
        for kind in ("Counter", "Gauge", "Histogram"):
            setattr(self, kind, lambda *arguments, kind=kind: self._make(kind, *arguments))

    def _make(self, kind: str, name: str, *rest: Any) -> Any:
        self.made.append((kind, name, *rest[1:]))
        calls = self.calls

        class Instrument:
            def __getattr__(self, method: str) -> Any:
                return lambda *arguments: calls.append((name, method, *arguments))

        return Instrument()


def test_the_instruments_are_made_once_with_their_labels_and_buckets() -> None:
    """Ray's constructors are dear, and a second instrument of a name is another one."""
    library = Library()
    sink = InstrumentSink(library)
    sink.count(metrics.LIMITER_DECISIONS, 0, {})
    sink.count(metrics.LIMITER_DECISIONS, 2, {})
    sink.set(metrics.KV_USE, 0.5, {metrics.MODEL: "m"})
    sink.observe(metrics.QUEUE_TIME, [0.1, 0.2], {metrics.MODEL: "m"})
    buckets = list(metrics.QUEUE_TIME.buckets)
    assert library.made == [
        ("Counter", "omai_limiter_decisions", ()),
        ("Gauge", "omai_engine_kv_use_ratio", (metrics.MODEL,)),
        ("Histogram", "omai_queue_time_seconds", buckets, (metrics.MODEL,)),
    ]
    assert library.calls == [
        ("omai_limiter_decisions", "_record", 0.0, {}),
        ("omai_limiter_decisions", "inc", 2, {}),
        ("omai_engine_kv_use_ratio", "set", 0.5, {metrics.MODEL: "m"}),
        ("omai_queue_time_seconds", "observe", 0.1, {metrics.MODEL: "m"}),
        ("omai_queue_time_seconds", "observe", 0.2, {metrics.MODEL: "m"}),
    ]
