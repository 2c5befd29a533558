"""What an engine refuses before it queues a request."""

from __future__ import annotations

import math

from omai_ray.engines.chat.protocol import GenerationRequest
from omai_ray.errors import ContextTooLong, InvalidRequest, Overloaded

# The least and the most a parameter may be.
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_k": (0, math.inf),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-1000.0, 1000.0),
    "frequency_penalty": (-1000.0, 1000.0),
}


def check_room(waiting: int, most: int, *, draining: bool) -> None:
    """Raise Overloaded where an engine takes no more requests."""
    if draining:
        raise Overloaded("The model's replica is shutting down. Please try again.")
    if waiting >= most:
        raise Overloaded(f"The model has {waiting} requests waiting. Please try again later.")


def check_request(request: GenerationRequest, vocab_size: int, context: int) -> None:
    """Raise InvalidRequest or ContextTooLong, naming the parameter, for what cannot be run."""
    count = len(request.prompt_ids)
    if count == 0:
        raise InvalidRequest("the prompt has no token", param="messages")
    if count >= context:
        raise ContextTooLong(
            f"the prompt has {count} tokens; the model's context of {context} leaves no room "
            "for an answer",
            param="messages",
        )
    if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
        raise InvalidRequest(
            f"the prompt has a token id outside the vocabulary (0 to {vocab_size - 1})",
            param="messages",
        )
    if request.max_new_tokens < 1:
        raise InvalidRequest(
            f"max_tokens is {request.max_new_tokens}, and has to be 1 or more", param="max_tokens"
        )
    sampling = request.sampling
    for name, (least, most) in _RANGES.items():
        value = getattr(sampling, name)
        if not least <= value <= most:  # NaN is not either
            raise InvalidRequest(f"{name} is {value}, outside {least} to {most}", param=name)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocab_size or not math.isfinite(bias):
            raise InvalidRequest(
                f"logit_bias has {token}: {bias}; token ids go from 0 to {vocab_size - 1}, and a "
                "bias is a finite number",
                param="logit_bias",
            )
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= vocab_size:
        raise InvalidRequest(
            f"logprobs is {sampling.logprobs}, outside 0 to {vocab_size}", param="logprobs"
        )
