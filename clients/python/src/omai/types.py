"""What OMAi answers where OpenAI's API has no such endpoint."""

from __future__ import annotations

from typing import Literal

from openai import BaseModel

__all__ = [
    "DetokenizeResponse",
    "RerankDocument",
    "RerankResponse",
    "RerankResult",
    "Score",
    "ScoreResponse",
    "TokenCount",
    "TokenizeResponse",
    "UsageRow",
]


class TokenCount(BaseModel):
    """How many tokens a request used."""

    prompt_tokens: int
    total_tokens: int


class RerankDocument(BaseModel):
    """A document, as it was sent."""

    text: str


class RerankResult(BaseModel):
    """How well a document answers the query. index: its place among those that were sent."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankResponse(BaseModel):
    """Documents, the most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: TokenCount


class Score(BaseModel):
    """How much two texts have to do with each other."""

    index: int
    object: Literal["score"]
    score: float


class ScoreResponse(BaseModel):
    """Scores of pairs of texts, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: TokenCount


class TokenizeResponse(BaseModel):
    """Tokens of a text or of messages. max_model_len: how many the model takes at once."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(BaseModel):
    """A text, special tokens left out."""

    prompt: str


class UsageRow(BaseModel):
    """What was used; None is what it is not grouped by, or a key where there was none.

    start_time: the hour or day, in seconds since the epoch. cost: in the operator's currency.
    """

    object: Literal["usage"]
    start_time: int | None = None
    account_id: str | None = None
    model: str | None = None
    key_id: str | None = None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int
    cost: float
