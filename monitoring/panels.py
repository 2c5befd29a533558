"""What the dashboards show: titles, queries and units, by dashboard.

`python -m monitoring.dashboards` writes them as Grafana's JSON. Names of our own metrics come from
`omai_ray.telemetry.metrics`; `{name}` in a query is one of them as Prometheus has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from omai_ray.telemetry import metrics
from omai_ray.telemetry.metrics import Metric

MODEL, OPERATION, TIER = metrics.MODEL, metrics.OPERATION, metrics.TIER


@dataclass(frozen=True)
class Query:
    """PromQL, and what its lines are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One graph. unit: as Grafana calls it."""

    title: str
    unit: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; uid is also its file's name."""

    uid: str
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: Metric, *by: str) -> Query:
    return _sum(f"rate({metric.series}[$__rate_interval])", *by)


def _sum(expression: str, *by: str) -> Query:
    grouped = f" by ({', '.join(by)})" if by else ""
    return Query(f"sum{grouped} ({expression})", " ".join(f"{{{{{label}}}}}" for label in by))


def _most(metric: Metric, *by: str) -> Query:
    """Return a gauge that whoever reports it has in full."""
    grouped = f" by ({', '.join(by)})" if by else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Query(f"max{grouped} ({metric.series})", legend)


def _quantiles(title: str, metric: Metric, by: str) -> Panel:
    rate = f"sum by (le, {by}) (rate({metric.series}[$__rate_interval]))"
    shown = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    return Panel(
        title,
        "s",
        tuple(
            Query(f"histogram_quantile({part}, {rate})", f"{name} {{{{{by}}}}}")
            for name, part in shown
        ),
    )


def _share(title: str, part: Metric, whole: Metric, *by: str) -> Panel:
    grouped = f" by ({', '.join(by)})" if by else ""
    top, bottom = (
        f"sum{grouped} (rate({metric.series}[$__rate_interval]))" for metric in (part, whole)
    )
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Panel(title, "percentunit", (Query(f"{top} / {bottom}", legend),))


def _one(title: str, unit: str, *queries: Query) -> Panel:
    return Panel(title, unit, queries)


_TTFT = _quantiles("Time to first token", metrics.TIME_TO_FIRST_TOKEN, MODEL)
_WAITING = _one("Requests waiting", "short", _sum(metrics.ENGINE_WAITING.series, MODEL))
_RUNNING = _one("Requests running", "short", _sum(metrics.ENGINE_RUNNING.series, MODEL))
_TOKENS = _one("Tokens a second", "short", _rate(metrics.TOKENS, MODEL, metrics.TOKEN_TYPE))
_REQUESTS = metrics.REQUESTS.series
_ERRORS = f'{_REQUESTS}{{{metrics.STATUS}=~"5.."}}'

OVERVIEW = Dashboard(
    "omai-overview",
    "OMAi: overview",
    (
        _one("Requests a second", "reqps", _rate(metrics.REQUESTS, metrics.ROUTE)),
        _one("By status", "reqps", _rate(metrics.REQUESTS, metrics.STATUS)),
        _one(
            "Failed requests",
            "percentunit",
            Query(
                f"sum(rate({_ERRORS}[$__rate_interval])) / "
                f"sum(rate({_REQUESTS}[$__rate_interval]))",
                "5xx",
            ),
        ),
        _one("Requests in the ingress", "short", _sum(metrics.REQUESTS_ACTIVE.series)),
        _quantiles("Duration", metrics.REQUEST_DURATION, OPERATION),
        _TTFT,
        _TOKENS,
        _WAITING,
        _one(
            "Healthy replicas",
            "short",
            _sum("ray_serve_deployment_replica_healthy", "deployment"),
        ),
        _one("Clients that left", "reqps", _rate(metrics.CANCELLATIONS, MODEL)),
        _one("Unusable credentials", "reqps", _rate(metrics.AUTH_FAILURES)),
        _one(
            "Disk in use", "percent", Query("ray_node_disk_utilization_percentage", "{{instance}}")
        ),
        _one("CPU in use", "percent", Query("ray_node_cpu_utilization", "{{instance}}")),
        _one("Memory in use", "bytes", Query("ray_node_mem_used", "{{instance}}")),
        _one("GPU in use", "percent", Query("ray_node_gpus_utilization", "{{instance}}")),
    ),
)
CHAT = Dashboard(
    "omai-chat",
    "OMAi: chat engine",
    (
        _TTFT,
        _quantiles("Time per output token", metrics.TIME_PER_OUTPUT_TOKEN, MODEL),
        _quantiles("Time in the queue", metrics.QUEUE_TIME, MODEL),
        _RUNNING,
        _WAITING,
        _one(
            "Room for keys and values in use",
            "percentunit",
            Query(f"max by ({MODEL}) ({metrics.KV_USE.series})", f"{{{{{MODEL}}}}}"),
        ),
        _share("Prompt tokens cached", metrics.PREFIX_HIT_TOKENS, metrics.PREFIX_TOKENS, MODEL),
        _one("Preemptions", "ops", _rate(metrics.PREEMPTIONS, MODEL)),
        _TOKENS,
        _one("Why answers ended", "ops", _rate(metrics.FINISHED, MODEL, metrics.REASON)),
    ),
)
EMBEDDINGS = Dashboard(
    "omai-embeddings",
    "OMAi: embeddings",
    (
        _one("Tokens a second", "short", _rate(metrics.EMBEDDING_TOKENS, MODEL)),
        _one("Batches a second", "ops", _rate(metrics.EMBEDDING_STEPS, MODEL)),
        _one(
            "Tokens in a batch",
            "short",
            Query(
                f"sum by ({MODEL}) (rate({metrics.EMBEDDING_TOKENS.series}[$__rate_interval])) / "
                f"sum by ({MODEL}) (rate({metrics.EMBEDDING_STEPS.series}[$__rate_interval]))",
                f"{{{{{MODEL}}}}}",
            ),
        ),
        _one(
            "Padding",
            "percentunit",
            Query(
                f"1 - sum by ({MODEL}) (rate({metrics.EMBEDDING_TOKENS.series}[$__rate_interval]))"
                f" / sum by ({MODEL}) "
                f"(rate({metrics.EMBEDDING_COMPUTED_TOKENS.series}[$__rate_interval]))",
                f"{{{{{MODEL}}}}}",
            ),
        ),
        _quantiles("Duration", metrics.REQUEST_DURATION, OPERATION),
        _quantiles("Time in the queue", metrics.QUEUE_TIME, MODEL),
        _RUNNING,
        _WAITING,
    ),
)
QUOTA = Dashboard(
    "omai-quota",
    "OMAi: quota",
    (
        _one("Refusals by reason", "reqps", _rate(metrics.REFUSALS, metrics.REASON)),
        _one("Refusals by tier", "reqps", _rate(metrics.REFUSALS, TIER)),
        _one(
            "Decisions", "ops", _rate(metrics.LIMITER_DECISIONS), _rate(metrics.LIMITER_FALLBACKS)
        ),
        _share("Decided without the limiter", metrics.LIMITER_FALLBACKS, metrics.LIMITER_DECISIONS),
        _one("Tokens by tier", "short", _rate(metrics.SETTLED_TOKENS, TIER)),
        _share("Used of what was reserved", metrics.SETTLED_TOKENS, metrics.RESERVED_TOKENS, MODEL),
    ),
)
BULK = Dashboard(
    "omai-bulk",
    "OMAi: bulk jobs",
    (
        _one("Jobs", "short", _sum(metrics.BULK_JOBS.series, MODEL)),
        _one("Rows a second", "short", _rate(metrics.BULK_ROWS, MODEL)),
        _one("Tokens a second", "short", _rate(metrics.BULK_TOKENS, MODEL)),
        _one("Rows left", "short", _sum(metrics.BULK_ROWS_LEFT.series, MODEL)),
        _one(
            "Time left",
            "s",
            Query(f"max by ({MODEL}) ({metrics.BULK_ETA.series})", f"{{{{{MODEL}}}}}"),
        ),
        _share("Dead letters", metrics.BULK_DEAD_LETTERS, metrics.BULK_ROWS, MODEL),
        _one("Batches", "short", _most(metrics.BATCHES, metrics.BATCH_STATUS)),
        _one(
            "Requests of batches a second", "reqps", _rate(metrics.BATCH_REQUESTS, metrics.RESULT)
        ),
        _one("Tokens that batches have enqueued", "short", _most(metrics.BATCH_TOKENS)),
        _one("Embedding jobs", "short", _most(metrics.EMBEDDING_JOBS, metrics.BATCH_STATUS)),
        _one(
            "Rows of embedding jobs a second",
            "short",
            _rate(metrics.EMBEDDING_JOB_ROWS, metrics.RESULT),
        ),
    ),
)
COST = Dashboard(
    "omai-cost",
    "OMAi: cost",
    (
        _one("Cost an hour", "short", _sum(f"3600 * rate({metrics.COST.series}[1h])", MODEL)),
        _one("By tier", "short", _sum(f"3600 * rate({metrics.COST.series}[1h])", TIER)),
        _one("In a day", "short", _sum(f"increase({metrics.COST.series}[1d])", MODEL)),
        _one(
            "Tokens in a day",
            "short",
            _sum(f"increase({metrics.TOKENS.series}[1d])", MODEL, metrics.TOKEN_TYPE),
        ),
    ),
)
ALL = (OVERVIEW, CHAT, EMBEDDINGS, QUOTA, BULK, COST)
