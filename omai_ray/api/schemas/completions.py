"""POST /v1/completions: a prompt as it is, without a chat template."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from omai_ray.api.schemas.common import ModelName, TokenId, as_list, form_of_input
from omai_ray.api.schemas.sampling import MAX_CHOICES, SamplingFields, Usage

_SOME_PROMPTS = Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)
_MAX_TOKENS = 2**20
_Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=_MAX_TOKENS, fail_fast=True)]


class CompletionRequest(SamplingFields):
    """Prompts to continue."""

    model: ModelName
    prompt: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[str], _SOME_PROMPTS, Tag("texts")]
        | Annotated[_Tokens, Tag("ids")]
        | Annotated[list[_Tokens], _SOME_PROMPTS, Tag("lists")],
        Discriminator(form_of_input),
    ]
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.best_of and self.best_of < (self.n or 1):
            raise ValueError(
                f"The parameter 'best_of' ({self.best_of}) must not be less than 'n' ({self.n})"
            )
        if self.candidates > (self.n or 1) and self.stream:
            raise ValueError("The parameter 'best_of' is only allowed when 'stream' is false")
        if self.echo and self.logprobs is not None:
            raise ValueError("The parameters 'echo' and 'logprobs' cannot be used together")
        count = len(self.prompts()) * self.candidates
        if count > MAX_CHOICES:
            raise ValueError(
                f"A request has at most {MAX_CHOICES} completions, prompts times 'n' or 'best_of', "
                f"but got {count}"
            )
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts as a list of texts, or of token ids."""
        return as_list(self.prompt)

    @property
    def candidates(self) -> int:
        """How many completions of a prompt are made; the best `n` are returned."""
        return max(self.best_of or 0, self.n or 1)


class CompletionLogprobs(BaseModel):
    """Natural-log probabilities: of each token, and of the likeliest in its place."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation, and why it ended."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionResponse(BaseModel):
    """The continuations."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
