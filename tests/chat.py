"""What tests of chat engines ask of an engine, and of the model that it should equal."""

from __future__ import annotations

from typing import Any

import torch

from omai_ray.engines.chat.protocol import ChatEngine, GenerationRequest, StepOutput


async def collect(engine: ChatEngine, request: GenerationRequest) -> list[StepOutput]:
    """Return every output of a request."""
    return [output async for output in engine.generate(request)]


def tokens(outputs: list[StepOutput]) -> list[int]:
    """Return the token ids of outputs."""
    return [token for output in outputs for token in output.token_ids]


def greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """Return what `model.generate` continues a prompt with."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
    )
    found: list[int] = out[0, len(prompt) :].tolist()
    return found
