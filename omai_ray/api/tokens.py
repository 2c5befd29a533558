"""POST /tokenize and /detokenize: what a model reads, counted. They cost a request, no tokens."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant, principal_of
from omai_ray.api.backends import ServedChat, ServedEmbedding, ServedModel, ServedModels
from omai_ray.api.chat import INLINE_CHARACTERS, plain_messages
from omai_ray.api.render import JsonBytes
from omai_ray.api.schemas.tokens import DetokenizeRequest, TokenizeRequest
from omai_ray.api.validation import read_body
from omai_ray.errors import InvalidRequest

Body = TypeVar("Body", TokenizeRequest, DetokenizeRequest)


class TokenRoutes:
    """Serves the tokenizers of all models."""

    def __init__(self, models: ServedModels, accountant: Accountant) -> None:
        self._models = models
        self._accountant = accountant

    async def tokenize(self, request: Request) -> Response:
        """Answer POST /tokenize."""
        body, served = await self._read(request, TokenizeRequest)
        if len(await request.body()) <= INLINE_CHARACTERS:
            ids = _encode(served, body)
        else:
            ids = await asyncio.to_thread(_encode, served, body)
        written: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": served.tokenizer.context,
            "tokens": ids,
            "token_strs": served.tokenizer.text.names(ids) if body.return_token_strs else None,
        }
        return JsonBytes(written)

    async def detokenize(self, request: Request) -> Response:
        """Answer POST /detokenize."""
        body, served = await self._read(request, DetokenizeRequest)
        text = served.tokenizer.text
        text.check_ids(body.tokens, "tokens")
        if len(body.tokens) <= INLINE_CHARACTERS:
            return JsonBytes({"prompt": text.decode(body.tokens)})
        return JsonBytes({"prompt": await asyncio.to_thread(text.decode, body.tokens)})

    async def _read(self, request: Request, schema: type[Body]) -> tuple[Body, ServedModel]:
        body = await read_body(request, schema)
        name = body.model
        served = self._models.any(name)
        principal_of(request).require_model(name, served.spec.name)
        meter = await self._accountant.admit(request, served.spec, reserved_tokens=0)
        await meter.close(200)
        return body, served


def _encode(served: ServedModel, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        if isinstance(served, ServedEmbedding) and body.add_special_tokens:
            return served.tokenizer.encode([body.prompt])[0]
        return served.tokenizer.text.encode(body.prompt, special_tokens=body.add_special_tokens)
    if not isinstance(served, ServedChat):
        raise InvalidRequest(
            f"The model '{body.model}' has no chat template: give 'prompt' instead of 'messages'.",
            param="messages",
        )
    return served.tokenizer.render(*plain_messages(body.messages or [], body.tools or []))
