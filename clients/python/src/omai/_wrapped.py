"""`client.with_raw_response` and `client.with_streaming_response`, with OMAi's own methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openai._client import (
    AsyncOpenAIWithRawResponse,
    AsyncOpenAIWithStreamedResponse,
    OpenAIWithRawResponse,
    OpenAIWithStreamedResponse,
)
from openai._legacy_response import async_to_raw_response_wrapper, to_raw_response_wrapper
from openai._response import async_to_streamed_response_wrapper, to_streamed_response_wrapper

if TYPE_CHECKING:
    from omai._client import AsyncOMAi, OMAi


class OMAiWithRawResponse(OpenAIWithRawResponse):
    """A client's methods, answering with raw responses."""

    def __init__(self, client: OMAi) -> None:
        super().__init__(client)
        self.usage = client.usage.with_raw_response
        self.rerank = to_raw_response_wrapper(client.rerank)
        self.score = to_raw_response_wrapper(client.score)
        self.tokenize = to_raw_response_wrapper(client.tokenize)
        self.detokenize = to_raw_response_wrapper(client.detokenize)


class AsyncOMAiWithRawResponse(AsyncOpenAIWithRawResponse):
    """An async client's methods, answering with raw responses."""

    def __init__(self, client: AsyncOMAi) -> None:
        super().__init__(client)
        self.usage = client.usage.with_raw_response
        self.rerank = async_to_raw_response_wrapper(client.rerank)
        self.score = async_to_raw_response_wrapper(client.score)
        self.tokenize = async_to_raw_response_wrapper(client.tokenize)
        self.detokenize = async_to_raw_response_wrapper(client.detokenize)


class OMAiWithStreamingResponse(OpenAIWithStreamedResponse):
    """A client's methods, answering with responses whose bodies are read by the caller."""

    def __init__(self, client: OMAi) -> None:
        super().__init__(client)
        self.usage = client.usage.with_streaming_response
        self.rerank = to_streamed_response_wrapper(client.rerank)
        self.score = to_streamed_response_wrapper(client.score)
        self.tokenize = to_streamed_response_wrapper(client.tokenize)
        self.detokenize = to_streamed_response_wrapper(client.detokenize)


class AsyncOMAiWithStreamingResponse(AsyncOpenAIWithStreamedResponse):
    """An async client's methods, answering with responses whose bodies are read by the caller."""

    def __init__(self, client: AsyncOMAi) -> None:
        super().__init__(client)
        self.usage = client.usage.with_streaming_response
        self.rerank = async_to_streamed_response_wrapper(client.rerank)
        self.score = async_to_streamed_response_wrapper(client.score)
        self.tokenize = async_to_streamed_response_wrapper(client.tokenize)
        self.detokenize = async_to_streamed_response_wrapper(client.detokenize)
