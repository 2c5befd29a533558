"""Endpoints that OMAi has and OpenAI has not, as methods of the clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from openai._base_client import AsyncAPIClient, SyncAPIClient, make_request_options

from omai._options import CallOptions, given
from omai.types import DetokenizeResponse, RerankResponse, ScoreResponse, TokenizeResponse

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam
    from typing_extensions import Unpack

_BESIDE = "../"  # /tokenize and /detokenize stand beside /v1


class Endpoints(SyncAPIClient):
    """Methods of OMAi."""

    def rerank(
        self,
        *,
        model: str,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        return_documents: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> RerankResponse:
        """Order documents by how well they answer a query, the best first; top_n: only so many."""
        body = given(
            model=model,
            query=query,
            documents=list(documents),
            top_n=top_n,
            return_documents=return_documents,
        )
        return self.post(
            "/rerank", cast_to=RerankResponse, body=body, options=make_request_options(**options)
        )

    def score(
        self,
        *,
        model: str,
        text_1: str | Sequence[str],
        text_2: str | Sequence[str],
        **options: Unpack[CallOptions],
    ) -> ScoreResponse:
        """Score how close texts are: one to one or more others, or two lists pair by pair."""
        body = {"model": model, "text_1": text_1, "text_2": text_2}
        return self.post(
            "/score", cast_to=ScoreResponse, body=body, options=make_request_options(**options)
        )

    def tokenize(
        self,
        *,
        model: str,
        prompt: str | None = None,
        messages: Iterable[ChatCompletionMessageParam] | None = None,
        tools: Iterable[ChatCompletionToolUnionParam] | None = None,
        add_special_tokens: bool | None = None,
        return_token_strs: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> TokenizeResponse:
        """Return the tokens of a prompt, or of messages as the model's chat template writes them.

        add_special_tokens: to a prompt, the model's own, such as [CLS]. return_token_strs: with
        the tokens as text.
        """
        return self.post(
            str(self.base_url.join(f"{_BESIDE}tokenize")),
            cast_to=TokenizeResponse,
            body=_tokenize_body(
                model, prompt, messages, tools, add_special_tokens, return_token_strs
            ),
            options=make_request_options(**options),
        )

    def detokenize(
        self, *, model: str, tokens: Sequence[int], **options: Unpack[CallOptions]
    ) -> DetokenizeResponse:
        """Return the text of tokens."""
        return self.post(
            str(self.base_url.join(f"{_BESIDE}detokenize")),
            cast_to=DetokenizeResponse,
            body={"model": model, "tokens": list(tokens)},
            options=make_request_options(**options),
        )


class AsyncEndpoints(AsyncAPIClient):
    """Methods of AsyncOMAi."""

    async def rerank(
        self,
        *,
        model: str,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        return_documents: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> RerankResponse:
        """Order documents by how well they answer a query, the best first; top_n: only so many."""
        body = given(
            model=model,
            query=query,
            documents=list(documents),
            top_n=top_n,
            return_documents=return_documents,
        )
        return await self.post(
            "/rerank", cast_to=RerankResponse, body=body, options=make_request_options(**options)
        )

    async def score(
        self,
        *,
        model: str,
        text_1: str | Sequence[str],
        text_2: str | Sequence[str],
        **options: Unpack[CallOptions],
    ) -> ScoreResponse:
        """Score how close texts are: one to one or more others, or two lists pair by pair."""
        body = {"model": model, "text_1": text_1, "text_2": text_2}
        return await self.post(
            "/score", cast_to=ScoreResponse, body=body, options=make_request_options(**options)
        )

    async def tokenize(
        self,
        *,
        model: str,
        prompt: str | None = None,
        messages: Iterable[ChatCompletionMessageParam] | None = None,
        tools: Iterable[ChatCompletionToolUnionParam] | None = None,
        add_special_tokens: bool | None = None,
        return_token_strs: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> TokenizeResponse:
        """Return the tokens of a prompt, or of messages as the model's chat template writes them.

        add_special_tokens: to a prompt, the model's own, such as [CLS]. return_token_strs: with
        the tokens as text.
        """
        return await self.post(
            str(self.base_url.join(f"{_BESIDE}tokenize")),
            cast_to=TokenizeResponse,
            body=_tokenize_body(
                model, prompt, messages, tools, add_special_tokens, return_token_strs
            ),
            options=make_request_options(**options),
        )

    async def detokenize(
        self, *, model: str, tokens: Sequence[int], **options: Unpack[CallOptions]
    ) -> DetokenizeResponse:
        """Return the text of tokens."""
        return await self.post(
            str(self.base_url.join(f"{_BESIDE}detokenize")),
            cast_to=DetokenizeResponse,
            body={"model": model, "tokens": list(tokens)},
            options=make_request_options(**options),
        )


def _tokenize_body(
    model: str,
    prompt: str | None,
    messages: Iterable[object] | None,
    tools: Iterable[object] | None,
    add_special_tokens: bool | None,
    return_token_strs: bool | None,
) -> dict[str, Any]:
    if (prompt is None) == (messages is None):
        raise TypeError("tokenize() takes either prompt= or messages=")
    return given(
        model=model,
        prompt=prompt,
        messages=None if messages is None else list(messages),
        tools=None if tools is None else list(tools),
        add_special_tokens=add_special_tokens,
        return_token_strs=return_token_strs,
    )
