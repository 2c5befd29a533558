"""Metrics of one process: gathered where requests run, handed on every few seconds.

Ray takes 6 to 11 µs a value, and a request has a dozen: here one costs a fraction of a microsecond,
and counters are added up before they go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from omai_ray.telemetry.metrics import Metric

FLUSH_S = 2.5
MOST_VALUES = 50_000
"""Values of a histogram's series that are kept between two flushes."""
_log = logging.getLogger(__name__)
_Series = tuple[Metric, tuple[str, ...]]


class Sink(Protocol):
    """Where metrics go."""

    def count(self, metric: Metric, amount: float, labels: dict[str, str]) -> None:
        """Add to a counter; 0 begins its series."""

    def set(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        """Set a gauge."""

    def observe(self, metric: Metric, values: Sequence[float], labels: dict[str, str]) -> None:
        """Add values to a histogram."""


class Recorder:
    """Gathers; any thread may call it. Labels are given in the metric's own order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[_Series, float] = {}
        self._totals: dict[_Series, float] = {}
        self._gauges: dict[_Series, float] = {}
        self._values: dict[_Series, list[float]] = {}

    def count(self, metric: Metric, amount: float, *labels: str) -> None:
        """Add to a counter. 0 begins its series, so that its first event is seen as a change."""
        series = (metric, labels)
        with self._lock:
            self._counts[series] = self._counts.get(series, 0.0) + amount

    def count_to(self, metric: Metric, total: float, *labels: str) -> None:
        """Add to a counter what it lacks of a total that somebody else keeps from 0 on.

        A total that goes back, as of work that is done again, counts once it is higher than ever.
        """
        series = (metric, labels)
        with self._lock:
            before = self._totals.get(series, 0.0)
            self._totals[series] = max(before, total)
            self._counts[series] = self._counts.get(series, 0.0) + max(0.0, total - before)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[metric, labels] = value

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        with self._lock:
            values = self._values.setdefault((metric, labels), [])
            if len(values) < MOST_VALUES:
                values.append(value)

    def flush(self, sink: Sink) -> None:
        """Hand on what has come since the last flush, and all gauges."""
        with self._lock:
            counts, self._counts = self._counts, {}
            values, self._values = self._values, {}
            gauges = dict(self._gauges)
        for (metric, labels), amount in counts.items():
            sink.count(metric, amount, _named(metric, labels))
        for (metric, labels), value in gauges.items():
            sink.set(metric, value, _named(metric, labels))
        for (metric, labels), observed in values.items():
            sink.observe(metric, observed, _named(metric, labels))


def _named(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.labels, labels, strict=True))


class Exporter:
    """A thread that flushes a recorder into a sink every interval_s, and once more at its end.

    sample: called before each flush, to set gauges and count what others keep totals of.
    """

    def __init__(
        self,
        recorder: Recorder,
        sink: Sink,
        sample: Callable[[], None] = lambda: None,
        interval_s: float = FLUSH_S,
    ) -> None:
        self._recorder = recorder
        self._sink = sink
        self._sample = sample
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Flush a last time; blocks for as long as that takes."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self._interval_s)
            try:
                self._sample()
                self._recorder.flush(self._sink)
            except Exception:  # what is watched must not end because the watching fails
                _log.exception("metrics could not be handed on")


class InstrumentSink:
    """Over a library with the classes Counter, Gauge and Histogram of ray.util.metrics.

    It is passed in, so that nothing here imports Ray.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._instruments: dict[Metric, Any] = {}

    def count(self, metric: Metric, amount: float, labels: dict[str, str]) -> None:
        """Add to a counter."""
        counter = self._instrument(metric)
        if amount:
            counter.inc(amount, labels)
        else:
            counter._record(0.0, labels)  # `inc` refuses 0, and a series begins with it

    def set(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        """Set a gauge."""
        self._instrument(metric).set(value, labels)

    def observe(self, metric: Metric, values: Sequence[float], labels: dict[str, str]) -> None:
        """Add values to a histogram."""
        histogram = self._instrument(metric)
        for value in values:
            histogram.observe(value, labels)

    def _instrument(self, metric: Metric) -> Any:
        if metric not in self._instruments:
            self._instruments[metric] = self._make(metric)
        return self._instruments[metric]

    def _make(self, metric: Metric) -> Any:
        name, description = metric.name, metric.description
        if metric.kind == "histogram":
            return self._library.Histogram(name, description, list(metric.buckets), metric.labels)
        kind = self._library.Counter if metric.kind == "counter" else self._library.Gauge
        return kind(name, description, metric.labels)
