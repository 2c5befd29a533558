"""What is measured of requests, as the API sees them."""

from __future__ import annotations

from omai_ray.api.context import CLIENT_CLOSED_REQUEST
from omai_ray.errors import OMAiError, Overloaded, QuotaExceeded, RateLimited
from omai_ray.ledger.ledger import UsageRecord
from omai_ray.telemetry import metrics
from omai_ray.telemetry.recorder import Recorder

_OVERLOADED = 503


class Measures:
    """Turns the outcome of requests into metrics."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def refused(self, model: str, tier: str, error: OMAiError) -> None:
        """Count a request that was not admitted."""
        if isinstance(error, RateLimited):
            self._refused(model, tier, error.reason)
        elif isinstance(error, QuotaExceeded):
            self._refused(model, tier, "budget")
        elif isinstance(error, Overloaded):
            self._refused(model, tier, "overloaded")

    def _refused(self, model: str, tier: str, reason: str) -> None:
        self._recorder.count(metrics.REFUSALS, 1, model, tier, reason)

    def ended(self, usage: UsageRecord, tier: str, reserved_tokens: int) -> None:
        """Count and time an admitted request that has ended, however it did."""
        recorder, model = self._recorder, usage.model
        used = usage.prompt_tokens + usage.completion_tokens
        recorder.count(metrics.RESERVED_TOKENS, reserved_tokens, model, tier)
        recorder.count(metrics.SETTLED_TOKENS, used, model, tier)
        if used:
            recorder.count(metrics.TOKENS, usage.prompt_tokens, model, tier, "input")
            recorder.count(metrics.TOKENS, usage.completion_tokens, model, tier, "output")
            recorder.count(metrics.TOKENS, usage.cached_tokens, model, tier, "cached")
        if usage.cost:
            recorder.count(metrics.COST, usage.cost, model, tier)
        if usage.finish_reason is not None:
            recorder.count(metrics.FINISHED, 1, model, usage.finish_reason)
        if usage.status == CLIENT_CLOSED_REQUEST:
            recorder.count(metrics.CANCELLATIONS, 1, model, usage.endpoint)
        elif usage.status == _OVERLOADED:
            self._refused(model, tier, "overloaded")
        if usage.status == 200 and usage.batch_id is None:  # a batch's lines wait behind others
            self._time(usage, tier)

    def _time(self, usage: UsageRecord, tier: str) -> None:
        labels = (metrics.operation_of(usage.endpoint), usage.model, tier)
        observe = self._recorder.observe
        observe(metrics.REQUEST_DURATION, usage.duration_ms / 1000, *labels)
        first_ms = usage.first_token_ms
        if first_ms is None:
            return
        observe(metrics.TIME_TO_FIRST_TOKEN, first_ms / 1000, *labels)
        if usage.completion_tokens > 1:
            rest_s = (usage.duration_ms - first_ms) / 1000
            observe(metrics.TIME_PER_OUTPUT_TOKEN, rest_s / (usage.completion_tokens - 1), *labels)
