from __future__ import annotations

import pytest

from deployments.metrics import sample_chat, sample_ingress
from omai_ray.engines.chat.protocol import EngineStats
from omai_ray.quota.coalescing import CoalescingLimiter, ShardedLimiter
from omai_ray.quota.protocol import Batch, Claim, Decision, Limits, Reservation
from omai_ray.telemetry import metrics
from omai_ray.telemetry.recorder import Recorder
from tests.memory_sink import Memory


def test_an_engines_totals_become_counters_and_its_state_gauges() -> None:
    """Sampling twice counts what came between, and nothing twice."""
    recorder, memory = Recorder(), Memory()
    sample_chat(recorder, "m", EngineStats(2, 3, 1, 100, 40, 0.25))
    recorder.flush(memory)
    sample_chat(recorder, "m", EngineStats(0, 0, 1, 150, 40, 0.0))
    recorder.flush(memory)
    assert memory.gauges == {
        (metrics.ENGINE_RUNNING.name, "m"): 0,
        (metrics.ENGINE_WAITING.name, "m"): 0,
        (metrics.KV_USE.name, "m"): 0,
    }
    assert memory.counts == {
        (metrics.PREEMPTIONS.name, "m"): 1,
        (metrics.PREFIX_TOKENS.name, "m"): 150,
        (metrics.PREFIX_HIT_TOKENS.name, "m"): 40,
    }


def test_an_engine_that_does_not_know_its_room_has_no_gauge_of_it() -> None:
    """VLLM keeps it to itself; 0 would be a lie."""
    recorder, memory = Recorder(), Memory()
    sample_chat(recorder, "m", EngineStats(1, 0))
    recorder.flush(memory)
    assert (metrics.KV_USE.name, "m") not in memory.gauges


class Away:
    """An authority that does not answer."""

    async def call(self, batch: Batch) -> list[Decision]:
        raise ConnectionError

    async def close(self) -> None:
        """Free nothing."""


@pytest.mark.fault(2)
async def test_decisions_without_the_limiter_are_counted_as_such() -> None:
    """From zero on, so that the first one is an increase."""
    limiter = ShardedLimiter([CoalescingLimiter(Away())])
    recorder, memory = Recorder(), Memory()
    sample_ingress(recorder, limiter)
    recorder.flush(memory)
    assert memory.counts[(metrics.LIMITER_FALLBACKS.name,)] == 0
    claims = (Claim("acc", Limits(60, 1000)),)
    assert (await limiter.reserve(Reservation("r", claims, 10))).admitted
    sample_ingress(recorder, limiter)
    recorder.flush(memory)
    assert memory.counts[(metrics.LIMITER_DECISIONS.name,)] == 1
    assert memory.counts[(metrics.LIMITER_FALLBACKS.name,)] == 1
    await limiter.close()
