"""Metrics kept in memory, for tests that look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omai_ray.telemetry.metrics import Metric


@dataclass
class Memory:
    """A sink that remembers, by a metric's name and the values of its labels."""

    counts: dict[tuple[str, ...], float] = field(default_factory=dict)
    gauges: dict[tuple[str, ...], float] = field(default_factory=dict)
    values: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    def count(self, metric: Metric, amount: float, labels: dict[str, str]) -> None:
        key = _key(metric, labels)
        self.counts[key] = self.counts.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        self.gauges[_key(metric, labels)] = value

    def observe(self, metric: Metric, values: Sequence[float], labels: dict[str, str]) -> None:
        self.values.setdefault(_key(metric, labels), []).extend(values)


def _key(metric: Metric, labels: dict[str, str]) -> tuple[str, ...]:
    assert tuple(labels) == metric.labels
    return metric.name, *labels.values()
