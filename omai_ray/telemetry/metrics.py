"""Every metric of the platform: its name, unit, labels and buckets, and nothing else.

Names and labels follow OpenTelemetry's conventions for generative AI and HTTP where those have one,
written as Prometheus does: `gen_ai.server.request.duration` in seconds is
`gen_ai_server_request_duration_seconds`. They still move, so nothing else writes a name down.

Labels have few values: models of the catalog, routes as templates, tiers of the settings. Keys,
accounts and requests are in the ledger and the log.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "ray_"
"""What Ray's endpoint puts before every name."""

MODEL = "gen_ai_request_model"
OPERATION = "gen_ai_operation_name"
TOKEN_TYPE = "gen_ai_token_type"  # noqa: S105 - a name
ROUTE = "http_route"
STATUS = "http_response_status_code"
TIER = "tier"
REASON = "reason"
RESULT = "result"
BATCH_STATUS = "status"
OTHER = "other"

_DURATION_S = tuple(0.01 * 2**step for step in range(14))
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric. buckets: a histogram's upper bounds, in its unit."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> str:
        """Return what it is called where Prometheus has read it; a histogram's is its buckets'."""
        suffix = {"counter": "_total", "gauge": "", "histogram": "_bucket"}[self.kind]
        return f"{PREFIX}{self.name}{suffix}"


TIME_TO_FIRST_TOKEN = Metric(
    "gen_ai_server_time_to_first_token_seconds", "histogram", "s", (OPERATION, MODEL, TIER),
    "From admission to the first of the answer", _TTFT_S,
)  # fmt: skip
TIME_PER_OUTPUT_TOKEN = Metric(
    "gen_ai_server_time_per_output_token_seconds", "histogram", "s", (OPERATION, MODEL, TIER),
    "Between tokens after the first, as a request's mean", _TPOT_S,
)  # fmt: skip
REQUEST_DURATION = Metric(
    "gen_ai_server_request_duration_seconds", "histogram", "s", (OPERATION, MODEL, TIER),
    "From admission to the end of the answer", _DURATION_S,
)  # fmt: skip
QUEUE_TIME = Metric(
    "omai_queue_time_seconds", "histogram", "s", (MODEL,),
    "From arrival at the engine to the first step that works on the request", _DURATION_S,
)  # fmt: skip
REQUESTS = Metric(
    "omai_requests", "counter", "requests", (ROUTE, STATUS),
    "Requests that have ended, 499 where the client left before an answer",
)  # fmt: skip
REQUESTS_ACTIVE = Metric(
    "omai_requests_active", "gauge", "requests", (), "Requests that an ingress replica is serving"
)
TOKENS = Metric(
    "omai_tokens", "counter", "tokens", (MODEL, TIER, TOKEN_TYPE),
    "Tokens read (input), written (output), and of those read not computed again (cached)",
)  # fmt: skip
FINISHED = Metric(
    "omai_finished", "counter", "answers", (MODEL, REASON),
    "Answers of chat models, by why they ended",
)  # fmt: skip
CANCELLATIONS = Metric(
    "omai_cancellations", "counter", "requests", (MODEL, ROUTE),
    "Admitted requests whose client left",
)  # fmt: skip
REFUSALS = Metric(
    "omai_admission_refusals", "counter", "requests", (MODEL, TIER, REASON),
    "Requests that were not admitted: requests, tokens or concurrency of a tier, the budget, "
    "or overloaded, a full queue",
)  # fmt: skip
LIMITER_DECISIONS = Metric(
    "omai_limiter_decisions", "counter", "decisions", (), "Reservations decided"
)
LIMITER_FALLBACKS = Metric(
    "omai_limiter_fallbacks", "counter", "decisions", (),
    "Of those, the ones that an ingress replica made itself, the limiter being away",
)  # fmt: skip
AUTH_FAILURES = Metric(
    "omai_auth_failures", "counter", "requests", (), "Requests without usable credentials"
)
RESERVED_TOKENS = Metric(
    "omai_reserved_tokens", "counter", "tokens", (MODEL, TIER), "Tokens that requests reserved"
)
SETTLED_TOKENS = Metric(
    "omai_settled_tokens", "counter", "tokens", (MODEL, TIER),
    "Tokens that the same requests used in the end",
)  # fmt: skip
COST = Metric(
    "omai_cost", "counter", "currency", (MODEL, TIER), "What requests cost by the catalog's prices"
)
ENGINE_RUNNING = Metric(
    "omai_engine_running", "gauge", "requests", (MODEL,), "Requests that a replica works on"
)
ENGINE_WAITING = Metric(
    "omai_engine_waiting", "gauge", "requests", (MODEL,), "Requests that wait in a replica"
)
KV_USE = Metric(
    "omai_engine_kv_use_ratio", "gauge", "ratio", (MODEL,),
    "Room for keys and values that running requests hold; what is kept of others is not counted",
)  # fmt: skip
PREFIX_TOKENS = Metric(
    "omai_engine_prompt_tokens", "counter", "tokens", (MODEL,), "Prompt tokens that began to run"
)
PREFIX_HIT_TOKENS = Metric(
    "omai_engine_prefix_hit_tokens", "counter", "tokens", (MODEL,),
    "Of those, the ones whose keys and values were there already",
)  # fmt: skip
PREEMPTIONS = Metric(
    "omai_engine_preemptions", "counter", "requests", (MODEL,),
    "Running requests that had to make room and start again",
)  # fmt: skip
EMBEDDING_STEPS = Metric(
    "omai_embedding_steps", "counter", "steps", (MODEL,), "Batches that an embedding engine ran"
)
EMBEDDING_TOKENS = Metric(
    "omai_embedding_tokens", "counter", "tokens", (MODEL,), "Tokens in those batches"
)
EMBEDDING_COMPUTED_TOKENS = Metric(
    "omai_embedding_computed_tokens", "counter", "tokens", (MODEL,),
    "Tokens that the batches computed, padding included",
)  # fmt: skip
BULK_JOBS = Metric("omai_bulk_jobs", "gauge", "jobs", (MODEL,), "Bulk jobs at work")
BULK_ROWS = Metric("omai_bulk_rows", "counter", "rows", (MODEL,), "Rows that bulk jobs have done")
BULK_TOKENS = Metric("omai_bulk_tokens", "counter", "tokens", (MODEL,), "Tokens in those rows")
BULK_DEAD_LETTERS = Metric(
    "omai_bulk_dead_letters", "counter", "rows", (MODEL,),
    "Of those rows, the ones that could not be embedded",
)  # fmt: skip
BULK_ROWS_LEFT = Metric(
    "omai_bulk_rows_left", "gauge", "rows", (MODEL,), "Rows that a bulk job still has to do"
)
BULK_ETA = Metric(
    "omai_bulk_eta_seconds", "gauge", "s", (MODEL,), "How long they will take, at the rate so far"
)
BATCHES = Metric("omai_batches", "gauge", "batches", (BATCH_STATUS,), "Batches that have not ended")
BATCH_TOKENS = Metric(
    "omai_batch_enqueued_tokens", "gauge", "tokens", (), "What tiers count of those batches' inputs"
)
BATCH_REQUESTS = Metric(
    "omai_batch_requests", "counter", "requests", (RESULT,),
    "Requests of batches that were answered, or have failed",
)  # fmt: skip
EMBEDDING_JOBS = Metric(
    "omai_embedding_jobs", "gauge", "jobs", (BATCH_STATUS,), "Embedding jobs that have not ended"
)
EMBEDDING_JOB_ROWS = Metric(
    "omai_embedding_job_rows", "counter", "rows", (RESULT,),
    "Rows of embedding jobs that were embedded, or dead-lettered",
)  # fmt: skip

ALL: tuple[Metric, ...] = tuple(value for value in vars().values() if isinstance(value, Metric))

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/v1/score": "rerank",
    "/tokenize": "tokenize",
    "/detokenize": "tokenize",
}


def operation_of(route: str) -> str:
    """Return what a route does, as `gen_ai.operation.name` has it."""
    return _OPERATIONS.get(route, OTHER)


def model_label(name: str, known: Collection[str]) -> str:
    """Return a model's name where the catalog has it: directories and hub ids are without end."""
    return name if name in known else OTHER
