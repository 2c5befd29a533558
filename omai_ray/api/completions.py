"""POST /v1/completions: text that goes on from a prompt, as it is."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import permitted, principal_of
from omai_ray.api.backends import ServedChat, ServedModels
from omai_ray.api.context import context_of
from omai_ray.api.generation import (
    ChunkedForm,
    TextService,
    TokenUsage,
    completion_limit,
    sampling_params,
    written,
)
from omai_ray.api.offload import inline_or_thread
from omai_ray.api.schemas.completions import CompletionRequest
from omai_ray.api.validation import read_body
from omai_ray.engines.chat.text import ChatDelta, ChatJob, TextLogprob
from omai_ray.errors import InvalidRequest

_DEFAULT_TOKENS = 16  # OpenAI's


class CompletionsEndpoint:
    """Serves text completions."""

    def __init__(self, models: ServedModels, service: TextService) -> None:
        self._models = models
        self._service = service

    async def create(self, request: Request) -> Response:
        """Answer one request, whole or as a stream."""
        body = await read_body(request, CompletionRequest)
        served = permitted(request, body.model, self._models.chat(body.model))
        prompts = await _tokenize(served, body)
        jobs = [_job(request, served, body, *numbered) for numbered in enumerate(prompts)]
        form = CompletionForm(served, body, prompts)
        return await self._service.answer(
            request,
            served,
            jobs,
            form,
            stream=bool(body.stream),
            typical_tokens=jobs[0].max_new_tokens,
        )


async def _tokenize(served: ServedChat, body: CompletionRequest) -> list[list[int]]:
    prompts = body.prompts()
    text = served.tokenizer.text
    if isinstance(prompts[0], list):
        for index, ids in enumerate(prompts):
            text.check_ids(ids, f"prompt[{index}]" if len(prompts) > 1 else "prompt")
        return prompts
    encoded = await inline_or_thread(
        sum(map(len, prompts)), text.encode_batch, prompts, special_tokens=True
    )
    if not all(encoded):
        raise InvalidRequest(
            "Invalid 'prompt': it has no token; give at least one character.", param="prompt"
        )
    return encoded


def _job(
    request: Request,
    served: ServedChat,
    body: CompletionRequest,
    index: int,
    prompt_ids: list[int],
) -> ChatJob:
    wanted = body.max_tokens or _DEFAULT_TOKENS
    # Which of several is best is told by their tokens' probabilities.
    ranks = body.candidates > (body.n or 1)
    logprobs = 0 if body.logprobs is None and ranks else body.logprobs
    return ChatJob(
        request_id=f"{context_of(request.scope).usage_id}.{index}",
        account=principal_of(request).account_id,
        adapter=served.adapter,
        prompt_ids=prompt_ids,
        max_new_tokens=completion_limit(served, len(prompt_ids), wanted, "prompt"),
        sampling=sampling_params(body, served.tokenizer.text, logprobs),
        n=body.candidates,
        stop=body.stops,
    )


class CompletionForm(ChunkedForm):
    """Writes text completions, and their chunks."""

    def __init__(
        self, served: ServedChat, body: CompletionRequest, prompts: list[list[int]]
    ) -> None:
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "model": served.spec.name,
        }
        super().__init__(head, include_usage=body.include_usage)
        self._n = body.n or 1
        self._candidates = body.candidates
        self._logprobs = body.logprobs is not None
        self._offsets = [0] * (len(prompts) * self._candidates)
        given = body.prompts()
        self._echoes: list[str] = []
        if body.echo:
            decode = served.tokenizer.text.decode
            self._echoes = [item if isinstance(item, str) else decode(item) for item in given]
        self._begun: set[int] = set()

    def whole(self, choices: list[ChatDelta], usage: TokenUsage) -> dict[str, Any]:
        """Return the response's body: of each prompt's candidates the best."""
        kept: list[ChatDelta] = []
        for start in range(0, len(choices), self._candidates):
            candidates = choices[start : start + self._candidates]
            if self._candidates > self._n:
                candidates = sorted(candidates, key=_likelihood, reverse=True)[: self._n]
            kept += candidates
        best = [self._choice(delta, index) for index, delta in enumerate(kept)]
        return {**self._head, "choices": best, "usage": usage.on_the_wire()}

    def frames(self, deltas: list[ChatDelta]) -> bytes:
        """Return a chunk for each choice that gained something."""
        return b"".join(
            self._chunk(self._choice(delta, delta.index))
            for delta in deltas
            if delta.text or delta.logprobs or delta.finish
        )

    def _choice(self, delta: ChatDelta, index: int) -> dict[str, Any]:
        echo = ""
        if self._echoes and index not in self._begun:
            self._begun.add(index)
            echo = self._echoes[index // self._n]
        return {
            "index": index,
            "text": echo + delta.text,
            "logprobs": self._tokens(delta.logprobs, index) if self._logprobs else None,
            "finish_reason": delta.finish,
        }

    def _tokens(self, tokens: list[TextLogprob], index: int) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [written(token.logprob) for token in tokens],
            "top_logprobs": [_likeliest(token) for token in tokens],
            "text_offset": offsets,
        }


def _likeliest(token: TextLogprob) -> dict[str, float]:
    """Return the likeliest tokens in a token's place, and always itself.

    Two tokens may have one text; the likelier has its place.
    """
    found: dict[str, float] = {}
    for text, value in (*token.top, (token.token, token.logprob)):
        found.setdefault(text, written(value))
    return found


def _likelihood(choice: ChatDelta) -> float:
    """Return a completion's mean log-probability a token."""
    values = [token.logprob for token in choice.logprobs]
    return sum(values) / len(values) if values else float("-inf")
