"""The chat engine's protocol: token ids in, token ids out. Free of torch.

Templates, text, stop strings and tools live above it (`omai_ray.text`, `engines.chat.text`), so
that every engine behaves alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

EngineFinish = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn.

    temperature 0 is argmax. seed None draws a fresh one. logit_bias: token id -> addition to its
    logit. logprobs: how many alternatives are reported with each token; None reports nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to continue.

    max_new_tokens counts every sampled token, an end-of-sequence token included.
    """

    request_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of a sampled token and of the likeliest alternatives."""

    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """New tokens of one sequence; the last output of a sequence has a finish reason.

    stop: an end-of-sequence token was sampled (it is in token_ids). abort: the request was
    cancelled. error: `error` says what failed.
    """

    token_ids: list[int]
    finish: EngineFinish | None = None
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing now."""

    running: int
    waiting: int


class ChatEngine(Protocol):
    """Continues sequences. One engine serves many requests at once."""

    context: int
    vocab_size: int
    stop_token_ids: frozenset[int]

    def start(self) -> None:
        """Load the weights and begin to serve. Blocking."""

    async def drain(self) -> None:
        """Finish what is running, then stop."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        """Yield the request's tokens as they are sampled. Raises Overloaded when the queue is full.

        Leaving the iterator early cancels the request.
        """

    def abort(self, request_id: str) -> None:
        """Cancel a request: its iterator ends with finish `abort`."""

    def stats(self) -> EngineStats:
        """Return what runs and what waits."""

    def check_health(self) -> None:
        """Raise ServerError where the engine can no longer answer."""
