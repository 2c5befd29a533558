"""POST /v1/rerank, as Jina and Cohere have it, and /v1/score, as vLLM has it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from omai_ray.api.schemas.common import ModelName, RequestBody
from omai_ray.api.schemas.embeddings import MAX_INPUTS, EmbeddingUsage

_Text = Annotated[str, Field(min_length=1)]
# An embedding model embeds the query too.
MAX_DOCUMENTS = MAX_INPUTS - 1
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=MAX_DOCUMENTS, fail_fast=True)]


class RerankRequest(RequestBody):
    """Documents to put in the order of how well they answer a query. top_n: of the best only."""

    model: ModelName
    query: _Text
    documents: _Texts
    top_n: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool | None = None
    user: str | None = None

    def name_of(self, index: int) -> str:
        """Return what a text is called here, by its place among the query and the documents."""
        return f"documents[{index - 1}]" if index else "query"


class RankedDocument(BaseModel):
    """A document as it was given."""

    text: str


class RerankResult(BaseModel):
    """A document's place in the request, and its score: higher is more relevant."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankResponse(BaseModel):
    """The documents, best first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage


class ScoreRequest(RequestBody):
    """Texts to compare: one with each of several, or two lists pair by pair."""

    model: ModelName
    text_1: _Text | _Texts
    text_2: _Text | _Texts
    user: str | None = None

    @model_validator(mode="after")
    def _paired(self) -> Self:
        first, second = self.firsts, self.seconds
        if len(first) not in (1, len(second)):
            raise ValueError(
                f"'text_1' is one text or as many as 'text_2', but they are {len(first)} and "
                f"{len(second)}"
            )
        return self

    @property
    def firsts(self) -> list[str]:
        """The texts that are compared."""
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def seconds(self) -> list[str]:
        """The texts that they are compared with."""
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2

    def name_of(self, index: int) -> str:
        """Return what a text is called here, by its place among the firsts and then the seconds."""
        count = len(self.firsts)
        of_firsts = index < count
        field = "text_1" if of_firsts else "text_2"
        if isinstance(self.text_1 if of_firsts else self.text_2, str):
            return field
        return f"{field}[{index if of_firsts else index - count}]"


class Score(BaseModel):
    """How alike, or how relevant, a pair is."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """The pairs' scores, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage
