"""Metrics on Ray's own endpoint, and what replicas sample of their engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import ray.util.metrics

from omai_ray.engines.chat.protocol import EngineStats
from omai_ray.quota.coalescing import ShardedLimiter
from omai_ray.telemetry import metrics
from omai_ray.telemetry.recorder import Exporter, InstrumentSink, Recorder

if TYPE_CHECKING:
    from omai_ray.engines.embedding.batcher import EmbeddingBatcher


def export(recorder: Recorder, sample: Callable[[], None]) -> Exporter:
    """Hand on what a recorder gathers, and what `sample` adds, to Ray until it is closed."""
    return Exporter(recorder, InstrumentSink(ray.util.metrics), sample)


def sample_chat(recorder: Recorder, model: str, stats: EngineStats) -> None:
    """Take over what a chat engine says of itself."""
    recorder.set(metrics.ENGINE_RUNNING, stats.running, model)
    recorder.set(metrics.ENGINE_WAITING, stats.waiting, model)
    if stats.kv_use is not None:
        recorder.set(metrics.KV_USE, stats.kv_use, model)
    recorder.count_to(metrics.PREEMPTIONS, stats.preemptions, model)
    recorder.count_to(metrics.PREFIX_TOKENS, stats.prompt_tokens, model)
    recorder.count_to(metrics.PREFIX_HIT_TOKENS, stats.cached_tokens, model)


def sample_embedding(recorder: Recorder, model: str, batcher: EmbeddingBatcher) -> None:
    """Take over what the queue before an embedding engine says of itself."""
    stats = batcher.stats()
    recorder.set(metrics.ENGINE_RUNNING, stats.running, model)
    recorder.set(metrics.ENGINE_WAITING, stats.waiting, model)
    recorder.count_to(metrics.EMBEDDING_STEPS, stats.steps, model)
    recorder.count_to(metrics.EMBEDDING_TOKENS, stats.tokens, model)
    recorder.count_to(metrics.EMBEDDING_COMPUTED_TOKENS, stats.computed_tokens, model)
    for waited_s in batcher.take_waits():
        recorder.observe(metrics.QUEUE_TIME, waited_s, model)


def sample_ingress(recorder: Recorder, limiter: ShardedLimiter) -> None:
    """Take over what an ingress replica's limiter says of itself."""
    recorder.count_to(metrics.LIMITER_DECISIONS, limiter.decisions)
    recorder.count_to(metrics.LIMITER_FALLBACKS, limiter.fallbacks)
