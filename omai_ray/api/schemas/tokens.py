"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from omai_ray.api.schemas.chat import ChatMessage, Tool
from omai_ray.api.schemas.common import MAX_ITEMS, ModelName, RequestBody, TokenId

_MAX_TOKENS = 2**20


class TokenizeRequest(RequestBody):
    """A text as it is, or messages as the model's chat template writes them.

    add_special_tokens: of a text, the checkpoint's own, such as [CLS].
    """

    model: ModelName
    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: (
        Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
        | None
    ) = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("Give either 'prompt' or 'messages'")
        if self.tools and self.messages is None:
            raise ValueError("The 'tools' parameter is only allowed with 'messages'")
        if self.add_special_tokens is not None and self.messages is not None:
            raise ValueError("The 'add_special_tokens' parameter is only allowed with 'prompt'")
        return self


class TokenizeResponse(BaseModel):
    """The tokens. max_model_len: how many a sequence may have."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestBody):
    """Token ids to write as text."""

    model: ModelName
    tokens: Annotated[list[TokenId], Field(max_length=_MAX_TOKENS, fail_fast=True)]


class DetokenizeResponse(BaseModel):
    """The text, special tokens left out."""

    prompt: str
