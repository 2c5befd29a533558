"""POST /v1/embeddings: validate, count, admit exactly, embed, settle."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant, Meter, principal_of, status_of
from omai_ray.api.backends import ServedEmbedding, ServedModels
from omai_ray.api.context import CLIENT_CLOSED_REQUEST
from omai_ray.api.render import JsonBytes
from omai_ray.api.schemas.embeddings import MAX_REQUEST_TOKENS, EmbeddingRequest
from omai_ray.api.sse import while_connected
from omai_ray.api.validation import read_body
from omai_ray.errors import ContextTooLong, InvalidRequest

Vectors = npt.NDArray[np.float32]
# Tokenising more characters than this leaves the event loop.
_INLINE_CHARACTERS = 20_000


class EmbeddingsEndpoint:
    """Serves embeddings."""

    def __init__(self, models: ServedModels, accountant: Accountant) -> None:
        self._models = models
        self._accountant = accountant

    async def create(self, request: Request) -> Response:
        """Answer one request."""
        body = await read_body(request, EmbeddingRequest)
        served = self._models.embedding(body.model)
        principal_of(request).require_model(body.model, served.spec.name)
        if body.dimensions is not None and not served.spec.dimensions:
            raise InvalidRequest(
                "This model does not support specifying dimensions.", param="dimensions"
            )
        inputs = _fit(served, await _tokenize(served, body))
        tokens = sum(map(len, inputs))
        meter = await self._accountant.admit(
            request, served.spec, prompt_tokens=tokens, reserved_tokens=tokens
        )
        account = principal_of(request).account_id
        embedding = _embed(served, inputs, body.dimensions, meter, account)
        vectors = await while_connected(request.receive, embedding)
        return JsonBytes(_response(served, body, vectors, tokens))


async def _tokenize(served: ServedEmbedding, body: EmbeddingRequest) -> list[list[int]]:
    inputs = body.inputs()
    if isinstance(inputs[0], list):
        token_inputs = inputs
        for index, ids in enumerate(token_inputs):
            served.tokenizer.text.check_ids(ids, f"input[{index}]")
        return token_inputs
    texts = inputs
    if sum(map(len, texts)) <= _INLINE_CHARACTERS:
        return served.tokenizer.encode(texts)
    return await asyncio.to_thread(served.tokenizer.encode, texts)


def _fit(served: ServedEmbedding, inputs: list[list[int]]) -> list[list[int]]:
    """Return inputs within the limits: shortened where the model's entry says so, else refused."""
    context = served.tokenizer.context
    for index, ids in enumerate(inputs):
        if len(ids) > context and not served.spec.truncate:
            raise ContextTooLong(
                f"This model's maximum context length is {context} tokens, however you requested "
                f"{len(ids)} tokens in input {index}. Please reduce it.",
                param="input",
            )
    inputs = [served.tokenizer.shorten(ids) for ids in inputs]
    total = sum(map(len, inputs))
    if total > MAX_REQUEST_TOKENS:
        raise InvalidRequest(
            f"Invalid 'input': maximum request size is {MAX_REQUEST_TOKENS} tokens per request, "
            f"but got {total} tokens instead.",
            param="input",
            code="max_tokens_per_request",
        )
    return inputs


async def _embed(
    served: ServedEmbedding,
    inputs: list[list[int]],
    dimensions: int | None,
    meter: Meter,
    account: str,
) -> Vectors:
    status = CLIENT_CLOSED_REQUEST
    try:
        vectors = await served.backend.embed(inputs, account)
        if dimensions is not None:
            vectors = _shorten(vectors, dimensions)
        meter.prompt_tokens = sum(map(len, inputs))
        status = 200
    except Exception as error:
        status = status_of(error)
        raise
    finally:
        await meter.close(status)
    return vectors


def _response(
    served: ServedEmbedding, body: EmbeddingRequest, vectors: Vectors, tokens: int
) -> dict[str, Any]:
    encode = _base64 if body.encoding_format == "base64" else _numbers
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": served.spec.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _shorten(vectors: Vectors, dimensions: int) -> Vectors:
    """Keep the first dimensions and renormalise (Matryoshka; Kusupati et al. 2022)."""
    if dimensions > vectors.shape[1]:
        raise InvalidRequest(
            f"Invalid 'dimensions': integer above maximum value. Expected a value <= "
            f"{vectors.shape[1]}, but got {dimensions} instead.",
            param="dimensions",
            code="integer_above_max_value",
        )
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    shortened: Vectors = cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
    return shortened


def _base64(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")


def _numbers(vector: Vectors) -> Vectors:
    return vector
