"""POST /v1/embeddings: validate, count, admit exactly, embed, settle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant, Meter, permitted, principal_of
from omai_ray.api.backends import EmbeddingBackend, ServedEmbedding, ServedModels
from omai_ray.api.offload import inline_or_thread
from omai_ray.api.render import large_json
from omai_ray.api.schemas.embeddings import MAX_REQUEST_TOKENS, EmbeddingRequest
from omai_ray.api.sse import while_connected
from omai_ray.api.validation import read_body
from omai_ray.api.vectors import embeddings_json
from omai_ray.catalog import ModelSpec
from omai_ray.errors import ContextTooLong, InvalidRequest

Vectors = npt.NDArray[np.float32]
Names = Callable[[int], str]
"""What the request calls a text, by its place among all of them."""


class EmbeddingsEndpoint:
    """Serves embeddings."""

    def __init__(self, models: ServedModels, accountant: Accountant) -> None:
        self._models = models
        self._accountant = accountant

    async def create(self, request: Request) -> Response:
        """Answer one request."""
        body = await read_body(request, EmbeddingRequest)
        served = permitted(request, body.model, self._models.embedding(body.model))
        if body.dimensions is not None and not served.spec.dimensions:
            raise InvalidRequest(
                "This model does not support specifying dimensions.", param="dimensions"
            )
        inputs = await _tokenize(served, body)
        check_tokens(
            inputs,
            served.tokenizer.context,
            truncate=served.spec.truncate,
            param="input",
            name=lambda index: "input" if isinstance(body.input, str) else f"input[{index}]",
        )
        inputs = [served.tokenizer.shorten(ids) for ids in inputs]
        vectors = await embed_admitted(
            request, self._accountant, served.spec, served.backend, inputs, body.dimensions
        )
        tokens = sum(map(len, inputs))
        as_text = body.encoding_format == "base64"
        return await large_json(
            request,
            vectors.size,
            lambda: embeddings_json(vectors, served.spec.name, tokens, as_base64=as_text),
            compressible=not as_text,  # of base64 a quarter goes, for the time of many tokens
        )


async def _tokenize(served: ServedEmbedding, body: EmbeddingRequest) -> list[list[int]]:
    inputs = body.inputs()
    if isinstance(inputs[0], list):
        token_inputs = inputs
        for index, ids in enumerate(token_inputs):
            served.tokenizer.text.check_ids(ids, f"input[{index}]")
        return token_inputs
    texts = inputs
    return await inline_or_thread(sum(map(len, texts)), served.tokenizer.encode, texts)


def check_tokens(
    inputs: Sequence[Sequence[int]],
    context: int,
    *,
    truncate: bool,
    param: str | None,
    name: Names,
    beside: str = "",
) -> None:
    """Raise ContextTooLong, or InvalidRequest for too many tokens in all.

    truncate: what is over-long will be shortened. param: the field that has all the inputs;
    name: what one of them is called in the request, as `input[1]`; beside: what else is counted.
    """
    lengths = [len(ids) for ids in inputs]
    longest = max(lengths)
    if longest > context and not truncate:
        named = name(lengths.index(longest))
        raise ContextTooLong(
            f"This model's maximum context length is {context} tokens, however you requested "
            f"{longest} tokens in {named}{beside}. Please reduce it.",
            param=named.partition("[")[0],
        )
    total = sum(min(length, context) for length in lengths)
    if total > MAX_REQUEST_TOKENS:
        raise too_many_tokens(total, param)


def too_many_tokens(total: int, param: str | None) -> InvalidRequest:
    """Return what a request with so many tokens is refused with. param: the field that has them."""
    where = f"Invalid '{param}': maximum" if param else "Maximum"
    return InvalidRequest(
        f"{where} request size is {MAX_REQUEST_TOKENS} tokens per request, but got {total} tokens "
        "instead.",
        param=param,
        code="max_tokens_per_request",
    )


async def embed_admitted(
    request: Request,
    accountant: Accountant,
    spec: ModelSpec,
    backend: EmbeddingBackend,
    inputs: list[list[int]],
    dimensions: int | None = None,
) -> Vectors:
    """Return float32 [N, D] for inputs, their tokens reserved before and recorded after.

    Raises RateLimited, ClientDisconnect, and what the backend raises.
    """
    meter = await accountant.admit(request, spec, reserved_tokens=sum(map(len, inputs)))
    account = principal_of(request).account_id
    work = _embed(backend, inputs, dimensions, meter, account)
    return await while_connected(request.receive, work)


async def _embed(
    backend: EmbeddingBackend,
    inputs: list[list[int]],
    dimensions: int | None,
    meter: Meter,
    account: str,
) -> Vectors:
    async with meter.closing():
        vectors = await backend.embed(inputs, account)
        meter.prompt_tokens = sum(map(len, inputs))
        if dimensions is not None:
            vectors = _shorten(vectors, dimensions)
    return vectors


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
