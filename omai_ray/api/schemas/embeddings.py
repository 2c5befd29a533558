"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from omai_ray.api.schemas.common import ModelName, RequestBody, TokenId, as_list, form_of_input

MAX_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000

_SOME_INPUTS = Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
_Text = Annotated[str, Field(min_length=1)]
_Tokens = Annotated[
    list[TokenId], Field(min_length=1, max_length=MAX_REQUEST_TOKENS, fail_fast=True)
]


class EmbeddingRequest(RequestBody):
    """Texts, or token ids, to embed."""

    model: ModelName
    input: Annotated[
        Annotated[_Text, Tag("text")]
        | Annotated[list[_Text], _SOME_INPUTS, Tag("texts")]
        | Annotated[list[TokenId], _SOME_INPUTS, Tag("ids")]
        | Annotated[list[_Tokens], _SOME_INPUTS, Tag("lists")],
        Discriminator(form_of_input),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        """Return the inputs as a list of texts, or of token ids."""
        return as_list(self.input)


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
