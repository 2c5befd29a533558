"""Which engine runs a chat model."""

from __future__ import annotations

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.protocol import ChatEngine


def create_engine(spec: ModelSpec) -> ChatEngine:
    """Return the engine of a model's entry, not yet started.

    Raises CheckpointError or ConfigError where the model cannot be used.
    """
    if spec.engine == "vllm":
        from omai_ray.engines.chat.vllm_engine import VllmEngine

        return VllmEngine(spec)
    from omai_ray.engines.chat.batching_engine import BatchingEngine

    return BatchingEngine(spec)
