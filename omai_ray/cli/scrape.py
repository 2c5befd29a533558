"""Ray's metrics endpoint, read directly: what a model does now, without a Prometheus."""

from __future__ import annotations

import math
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Protocol

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from omai_ray.cli.server import reason
from omai_ray.errors import ConfigError
from omai_ray.telemetry import metrics
from omai_ray.telemetry.metrics import Metric

TIMEOUT_S = 10.0
_HEALTHY = "ray_serve_deployment_replica_healthy"
_TARGET = "ray_serve_autoscaling_target_replicas"


@dataclass(frozen=True)
class Scrape:
    """What endpoints gave at a time: values by series' name, then by labels."""

    at_s: float
    values: dict[str, list[tuple[dict[str, str], float]]]

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of a series where it has these labels; 0 where there is none."""
        return sum(
            value for has, value in self.values.get(name, ()) if labels.items() <= has.items()
        )

    def most(self, name: str, **labels: str) -> float | None:
        """Return the largest value of a series where it has these labels."""
        found = [v for has, v in self.values.get(name, ()) if labels.items() <= has.items()]
        return max(found, default=None)

    def names(self, label: str) -> list[str]:
        """Return the values of a label of our own series, in order."""
        return sorted(
            {
                has[label]
                for metric in metrics.ALL
                for has, _ in self.values.get(metric.series, ())
                if label in has
            }
        )

    def buckets(self, metric: Metric, **labels: str) -> dict[float, float]:
        """Return a histogram's counts up to each bound."""
        counts: dict[float, float] = defaultdict(float)
        for has, value in self.values.get(metric.series, ()):
            if labels.items() <= has.items():
                counts[float(has["le"])] += value
        return dict(counts)


def scrape(urls: Sequence[str]) -> Scrape:
    """Read endpoints. Raises ConfigError where one does not answer, or with no metrics."""
    values: dict[str, list[tuple[dict[str, str], float]]] = {}
    for url in urls:
        for sample in _samples(url):
            values.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Scrape(time.monotonic(), values)


def _samples(url: str) -> list[Sample]:
    try:
        families = text_string_to_metric_families(_read(url).decode())
        return [sample for family in families for sample in family.samples]
    except (ValueError, IndexError):  # the parser's, at a text that has braces but no labels
        raise ConfigError(
            f"{url} answers, and not with metrics: --metrics-url names another"
        ) from None


def _read(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--metrics-url {url}: expected http://HOST:PORT/metrics")
    try:
        # Never by way of a proxy that the environment names: clusters are on networks of their own.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=TIMEOUT_S) as answer:
            text: bytes = answer.read()
    except (OSError, HTTPException, ValueError) as error:
        raise ConfigError(
            f"{url} does not answer ({reason(error)}): is the cluster running? --metrics-url names "
            "another"
        ) from None
    return text


@dataclass(frozen=True)
class ModelNow:
    """One model. Rates are a second's; times are in seconds; None is not known."""

    name: str
    running: int
    waiting: int
    input_per_s: float
    output_per_s: float
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    kv_use: float | None
    cached: float | None


@dataclass(frozen=True)
class Now:
    """The platform between two scrapes. replicas: deployment -> (healthy, wanted)."""

    active: int
    requests_per_s: float
    failed_per_s: float
    models: list[ModelNow] = field(default_factory=list)
    replicas: dict[str, tuple[int, int]] = field(default_factory=dict)


def between(before: Scrape, now: Scrape) -> Now:
    """Return what was done between two scrapes, and what is going on at the later one."""
    elapsed_s = max(now.at_s - before.at_s, 1e-9)

    def rate(metric: Metric, **labels: str) -> float:
        gained = now.sum(metric.series, **labels) - before.sum(metric.series, **labels)
        return max(0.0, gained) / elapsed_s

    failed = sum(
        max(0.0, value - before.sum(metrics.REQUESTS.series, **has))
        for has, value in now.values.get(metrics.REQUESTS.series, ())
        if has[metrics.STATUS].startswith("5")
    )
    deployments = sorted({has["deployment"] for has, _ in now.values.get(_HEALTHY, ())})
    return Now(
        active=round(now.sum(metrics.REQUESTS_ACTIVE.series)),
        requests_per_s=rate(metrics.REQUESTS),
        failed_per_s=failed / elapsed_s,
        models=[_model(before, now, name, rate) for name in now.names(metrics.MODEL)],
        replicas={
            name: (
                round(now.sum(_HEALTHY, deployment=name)),
                round(now.sum(_TARGET, deployment=name)),
            )
            for name in deployments
        },
    )


def _model(before: Scrape, now: Scrape, name: str, rate: _Rate) -> ModelNow:
    labels = {metrics.MODEL: name}
    first = _gained(
        before.buckets(metrics.TIME_TO_FIRST_TOKEN, **labels),
        now.buckets(metrics.TIME_TO_FIRST_TOKEN, **labels),
    )
    read = now.sum(metrics.PREFIX_TOKENS.series, **labels)
    hit = now.sum(metrics.PREFIX_HIT_TOKENS.series, **labels)
    return ModelNow(
        name=name,
        running=round(now.sum(metrics.ENGINE_RUNNING.series, **labels)),
        waiting=round(now.sum(metrics.ENGINE_WAITING.series, **labels)),
        input_per_s=rate(metrics.TOKENS, **labels, **{metrics.TOKEN_TYPE: "input"}),
        output_per_s=rate(metrics.TOKENS, **labels, **{metrics.TOKEN_TYPE: "output"}),
        first_token_p50_s=quantile(0.5, first),
        first_token_p95_s=quantile(0.95, first),
        kv_use=now.most(metrics.KV_USE.series, **labels),
        cached=hit / read if read else None,
    )


class _Rate(Protocol):
    def __call__(self, metric: Metric, **labels: str) -> float: ...


def _gained(before: dict[float, float], now: dict[float, float]) -> dict[float, float]:
    """Return a histogram of the time between; of all time where nothing was observed in it."""
    gained = {bound: count - before.get(bound, 0.0) for bound, count in now.items()}
    return gained if gained.get(math.inf, 0.0) > 0 else now


def quantile(part: float, buckets: dict[float, float]) -> float | None:
    """Return a quantile of counts up to bounds, as Prometheus does: linear within a bucket.

    None where there are none. Beyond the last finite bound it is that bound.
    """
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    rank, below, lower = part * total, 0.0, 0.0
    for bound in sorted(buckets):
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return lower
            inside = buckets[bound] - below
            return lower + (bound - lower) * ((rank - below) / inside if inside else 1.0)
        below, lower = buckets[bound], bound
    return lower
