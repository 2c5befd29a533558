"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from omai_ray.api.schemas.common import ModelName, RequestBody

MAX_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000

_SOME_INPUTS = Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
_Text = Annotated[str, Field(min_length=1)]
_TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Tokens = Annotated[
    list[_TokenId], Field(min_length=1, max_length=MAX_REQUEST_TOKENS, fail_fast=True)
]


def _meant(value: Any) -> str:
    """Return which of the forms an input has, by its first element: the errors speak of that."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else None
    return "ids" if isinstance(first, int) else "lists" if isinstance(first, list) else "texts"


class EmbeddingRequest(RequestBody):
    """Texts, or token ids, to embed."""

    model: ModelName
    input: Annotated[
        Annotated[_Text, Tag("text")]
        | Annotated[list[_Text], _SOME_INPUTS, Tag("texts")]
        | Annotated[list[_TokenId], _SOME_INPUTS, Tag("ids")]
        | Annotated[list[_Tokens], _SOME_INPUTS, Tag("lists")],
        Discriminator(_meant),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        """Return the inputs as a list of texts, or of token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class EmbeddingObject(BaseModel):
    """One input's vector: numbers, or base64 of little-endian float32."""

    object: str = "embedding"
    embedding: list[float] | str
    index: int


class EmbeddingUsage(BaseModel):
    """Tokens embedded."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors, in the order of the inputs."""

    object: str = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
