"""POST /tokenize and /detokenize: what a model reads, counted. They cost a request, no tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant, permitted
from omai_ray.api.backends import ServedChat, ServedEmbedding, ServedModel, ServedModels
from omai_ray.api.chat import plain_messages
from omai_ray.api.offload import inline_or_thread
from omai_ray.api.render import JsonBytes
from omai_ray.api.schemas.tokens import DetokenizeRequest, TokenizeRequest
from omai_ray.api.validation import read_body
from omai_ray.errors import InvalidRequest


class TokenRoutes:
    """Serves the tokenizers of all models."""

    def __init__(self, models: ServedModels, accountant: Accountant) -> None:
        self._models = models
        self._accountant = accountant

    async def tokenize(self, request: Request) -> Response:
        """Answer POST /tokenize."""
        body = await read_body(request, TokenizeRequest)
        return await self._answer(request, body.model, partial(_tokenize, body))

    async def detokenize(self, request: Request) -> Response:
        """Answer POST /detokenize."""
        body = await read_body(request, DetokenizeRequest)
        return await self._answer(request, body.model, partial(_detokenize, body))

    async def _answer(
        self, request: Request, name: str, work: Callable[[ServedModel], dict[str, Any]]
    ) -> Response:
        served = permitted(request, name, self._models.any(name))
        meter = await self._accountant.admit(request, served.spec, reserved_tokens=0)
        async with meter.closing():
            return await inline_or_thread(
                len(await request.body()), lambda: JsonBytes(work(served))
            )


def _tokenize(body: TokenizeRequest, served: ServedModel) -> dict[str, Any]:
    ids = _encode(served, body)
    return {
        "count": len(ids),
        "max_model_len": served.tokenizer.context,
        "tokens": ids,
        "token_strs": served.tokenizer.text.names(ids) if body.return_token_strs else None,
    }


def _detokenize(body: DetokenizeRequest, served: ServedModel) -> dict[str, Any]:
    text = served.tokenizer.text
    text.check_ids(body.tokens, "tokens")
    return {"prompt": text.decode(body.tokens)}


def _encode(served: ServedModel, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        special = body.add_special_tokens is not False
        if isinstance(served, ServedEmbedding) and special:
            return served.tokenizer.encode([body.prompt])[0]
        return served.tokenizer.text.encode(body.prompt, special_tokens=special)
    if not isinstance(served, ServedChat):
        raise InvalidRequest(
            f"The model '{body.model}' has no chat template: give 'prompt' instead of 'messages'.",
            param="messages",
        )
    return served.tokenizer.render(*plain_messages(body.messages or [], body.tools or []))
