"""The chat engine's protocol: token ids in, token ids out. Free of torch.

Templates, text, stop strings and tools live above it (`omai_ray.text`, `engines.chat.text`), so
that every engine behaves alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from omai_ray.priority import Priority

EngineFinish = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn.

    temperature 0 is argmax. top_k 0 keeps all. min_p: least probability, as a part of the
    likeliest token's. seed None draws a fresh one. repetition_penalty counts prompt and completion
    (Keskar et al. 2019), the other penalties the completion. logit_bias: token id -> addition to
    its logit. logprobs: how many alternatives are reported with each token; None reports nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like.

    source: a JSON Schema, a regular expression or a Lark grammar (llguidance's dialect). param:
    the request's parameter that asked for it, for errors.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to continue.

    max_new_tokens counts every sampled token, an end-of-sequence token included. account: whom it
    belongs to, for fair shares and for what may be shared. adapter: the LoRA adapter that
    answers; empty for the model itself. deadline: time.monotonic() by which it has to end; later it
    ends with finish `error`. priority: before whom it is served.
    """

    request_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    account: str = ""
    adapter: str = ""
    deadline: float | None = None
    grammar: Grammar | None = None
    priority: Priority = "online"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities of a sampled token and of the likeliest alternatives."""

    logprob: float
    top: list[tuple[int, float]]


@dataclass(slots=True)  # made for every token: a frozen one takes thrice as long
class StepOutput:
    """New tokens of one sequence; the last output of a sequence has a finish reason.

    stop: an end-of-sequence token was sampled (it is in token_ids). abort: the request was
    cancelled. error: `error` says what failed. cached_tokens: prompt tokens that had not to be
    computed, known with the first output. queued_s: how long the request waited to be begun; on its
    first output only, of engines that know.
    """

    token_ids: list[int]
    finish: EngineFinish | None = None
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    cached_tokens: int = 0
    queued_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing now.

    Since the start: preemptions, how often a sequence had to make room and start again;
    prompt_tokens of what was begun, and cached_tokens, those of them that had not to be computed.
    kv_use: the part of the room for keys and values that running sequences hold; None where the
    engine does not know.
    """

    running: int
    waiting: int
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    kv_use: float | None = None


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
