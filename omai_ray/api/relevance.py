"""POST /v1/rerank and /v1/score: how relevant texts are, by a reranker or an embedding model.

A reranker reads each pair; of an embedding model the score is the cosine of the two vectors.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant, permitted
from omai_ray.api.backends import ServedEmbedding, ServedModels, ServedRerank
from omai_ray.api.embeddings import Names, Vectors, check_tokens, embed_admitted, too_many_tokens
from omai_ray.api.offload import inline_or_thread
from omai_ray.api.render import JsonBytes
from omai_ray.api.schemas.embeddings import MAX_INPUTS, MAX_REQUEST_TOKENS
from omai_ray.api.schemas.relevance import RerankRequest, ScoreRequest
from omai_ray.api.validation import read_body
from omai_ray.errors import ContextTooLong, InvalidRequest, ModelNotFound

Served = ServedEmbedding | ServedRerank
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Comparison:
    """Inputs to run a model on, and what their vectors say of the pairs."""

    inputs: list[list[int]]
    scores: Callable[[Vectors], Scores]

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return sum(map(len, self.inputs))


class RelevanceRoutes:
    """Serves rerankers and embedding models."""

    def __init__(self, models: ServedModels, accountant: Accountant) -> None:
        self._models = models
        self._accountant = accountant

    async def rerank(self, request: Request) -> Response:
        """Answer POST /v1/rerank."""
        body = await read_body(request, RerankRequest)
        served = self._served(request, body.model)
        scores, tokens = await self._score(
            request, served, [body.query], body.documents, body.name_of
        )
        order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
        results = [{"index": index, "relevance_score": float(scores[index])} for index in order]
        if body.return_documents is not False:
            for result in results:
                result["document"] = {"text": body.documents[result["index"]]}
        return JsonBytes(
            {"id": f"rerank-{uuid.uuid4().hex}", **_answer(served, tokens), "results": results}
        )

    async def score(self, request: Request) -> Response:
        """Answer POST /v1/score."""
        body = await read_body(request, ScoreRequest)
        served = self._served(request, body.model)
        scores, tokens = await self._score(request, served, body.firsts, body.seconds, body.name_of)
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(scores.tolist())
        ]
        head = {"id": f"score-{uuid.uuid4().hex}", "created": int(time.time())}
        return JsonBytes({**head, **_answer(served, tokens), "data": data})

    def _served(self, request: Request, name: str) -> Served:
        served = permitted(request, name, self._models.any(name))
        if not isinstance(served, ServedEmbedding | ServedRerank):
            raise ModelNotFound(
                f"The model '{name}' does {served.spec.task}, not rerank or embedding: use another "
                "endpoint.",
                param="model",
            )
        return served

    async def _score(
        self,
        request: Request,
        served: Served,
        firsts: Sequence[str],
        seconds: Sequence[str],
        name: Names,
    ) -> tuple[Scores, int]:
        """Return each pair's score, and the tokens that were read."""
        if len(firsts) + len(seconds) > MAX_INPUTS:
            raise InvalidRequest(
                f"A request has at most {MAX_INPUTS} texts, but got {len(firsts) + len(seconds)}."
            )
        characters = sum(map(len, seconds)) + len(firsts[0]) * len(seconds)
        comparison = await inline_or_thread(characters, _compare, served, firsts, seconds, name)
        vectors = await embed_admitted(
            request, self._accountant, served.spec, served.backend, comparison.inputs
        )
        return comparison.scores(vectors), comparison.tokens


def _compare(
    served: Served, firsts: Sequence[str], seconds: Sequence[str], name: Names
) -> _Comparison:
    if isinstance(served, ServedRerank):
        return _compare_pairs(served, firsts, seconds, name)
    return _compare_vectors(served, firsts, seconds, name)


def _compare_pairs(
    served: ServedRerank, firsts: Sequence[str], seconds: Sequence[str], name: Names
) -> _Comparison:
    tokenizer = served.tokenizer
    _check_queries(served, firsts, seconds, name)
    if len(firsts) == 1:
        inputs = tokenizer.encode_pairs(firsts[0], seconds)
    else:
        pairs = zip(firsts, seconds, strict=True)
        inputs = [ids for pair in pairs for ids in tokenizer.encode_pairs(pair[0], [pair[1]])]
    check_tokens(
        inputs,
        tokenizer.context,
        truncate=served.spec.truncate,
        param=None,
        name=lambda pair: name(len(firsts) + pair),
        beside=" with what it is compared with",
    )
    return _Comparison(
        [tokenizer.shorten_pair(ids) for ids in inputs], lambda vectors: vectors[:, 0]
    )


def _check_queries(
    served: ServedRerank, firsts: Sequence[str], seconds: Sequence[str], name: Names
) -> None:
    """Raise for queries that no document fits beside, before each is copied for every document."""
    counted = [len(ids) for ids in served.tokenizer.text.encode_batch(firsts, special_tokens=True)]
    if max(counted) > served.tokenizer.context:
        named = name(counted.index(max(counted)))
        raise ContextTooLong(
            f"This model's maximum context length is {served.tokenizer.context} tokens, however "
            f"{named} alone has {max(counted)}. Please reduce it.",
            param=named.partition("[")[0],
        )
    total = sum(counted) * (len(seconds) if len(firsts) == 1 else 1)
    if total > MAX_REQUEST_TOKENS:
        raise too_many_tokens(total, None)


def _compare_vectors(
    served: ServedEmbedding, firsts: Sequence[str], seconds: Sequence[str], name: Names
) -> _Comparison:
    tokenizer = served.tokenizer
    inputs = tokenizer.encode([*firsts, *seconds])
    check_tokens(inputs, tokenizer.context, truncate=served.spec.truncate, param=None, name=name)

    def scores(vectors: Vectors) -> Scores:
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        cosines: Scores = (units[: len(firsts)] * units[len(firsts) :]).sum(axis=1)
        return cosines

    return _Comparison([tokenizer.shorten(ids) for ids in inputs], scores)


def _answer(served: Served, tokens: int) -> dict[str, Any]:
    return {
        "object": "list",
        "model": served.spec.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
