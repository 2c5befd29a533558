"""OpenAI's client for Python, unmodified, against a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam
from pydantic import BaseModel, ConfigDict

from tests.api.conftest import CHAT, EMBEDDING
from tests.clients.conftest import Live

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, how are you?"}]
GREEDY: dict[str, Any] = {"model": CHAT, "messages": HELLO, "temperature": 0, "max_tokens": 12}
FOX = "The quick brown fox jumps over the lazy dog"


class Weather(BaseModel):
    """Arguments, or an answer, that even a random model soon completes."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Rome", "Oslo"]
    hot: bool


WEATHER_TOOL: ChatCompletionToolUnionParam = openai.pydantic_function_tool(
    Weather, name="get_weather"
)
CALL: dict[str, Any] = {
    "model": CHAT,
    "messages": HELLO,
    "tools": [WEATHER_TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 200,
}


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    """Return OpenAI's client as its users make it, which does not hide a failure by retrying."""
    with OpenAI(base_url=live.base_url, api_key=live.key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(live: Live) -> AsyncIterator[AsyncOpenAI]:
    """Return the same, asynchronous."""
    async with AsyncOpenAI(base_url=live.base_url, api_key=live.key, max_retries=0) as client:
        yield client


async def test_openai_reads_the_same_answer_whole_and_streamed(
    client: OpenAI, async_client: AsyncOpenAI
) -> None:
    """With the synchronous client and the asynchronous one; greedy answers do not vary."""
    whole = client.chat.completions.create(**GREEDY)
    assert whole.id.startswith("chatcmpl-")
    (choice,) = whole.choices
    assert choice.finish_reason in ("stop", "length")
    text = choice.message.content
    assert text
    again = await async_client.chat.completions.create(**GREEDY)
    assert text == again.choices[0].message.content

    with client.chat.completions.create(**GREEDY, stream=True) as stream:
        chunks = list(stream)
    assert text == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    async with await async_client.chat.completions.create(**GREEDY, stream=True) as stream_again:
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream_again]
    assert text == "".join(parts)


def test_openai_reads_the_usage_at_the_end_of_a_stream(client: OpenAI) -> None:
    """It is that of the whole answer, in the only chunk without choices."""
    whole = client.chat.completions.create(**GREEDY).usage
    assert whole is not None
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    with client.chat.completions.create(**GREEDY, **options) as stream:
        *chunks, last = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert whole.total_tokens == last.usage.total_tokens
    assert last.usage.prompt_tokens + last.usage.completion_tokens == last.usage.total_tokens


def test_openai_reads_several_choices_with_logprobs(client: OpenAI) -> None:
    """As many as were asked for, each token with its alternatives, whole and streamed."""
    fields: dict[str, Any] = {
        "model": CHAT,
        "messages": HELLO,
        "n": 3,
        "seed": 5,
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**fields)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    texts = [""] * 3
    tokens = [0] * 3
    with client.chat.completions.create(**fields, stream=True) as stream:
        for chunk in stream:
            for part in chunk.choices:
                texts[part.index] += part.delta.content or ""
                tokens[part.index] += len((part.logprobs and part.logprobs.content) or [])
    assert [choice.message.content for choice in whole.choices] == texts
    assert [len((c.logprobs and c.logprobs.content) or []) for c in whole.choices] == tokens


def test_openai_accumulates_a_streamed_tool_call(client: OpenAI) -> None:
    """The client's own helper puts it together and parses the arguments, as it does a whole one."""
    with client.chat.completions.stream(**CALL) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    whole = client.chat.completions.parse(**CALL).choices[0]
    for choice in (streamed, whole):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
        assert isinstance(call.function.parsed_arguments, Weather)


@pytest.mark.parametrize("parsed", [False, True])
def test_openai_sends_an_answer_back_as_it_came(client: OpenAI, parsed: bool) -> None:
    """With the tool's result after it; what the client has parsed travels with it."""
    ask: Any = client.chat.completions.parse if parsed else client.chat.completions.create
    message = ask(**CALL).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "25 degrees"}
    messages = [*HELLO, message, result]
    answer = client.chat.completions.create(**{**GREEDY, "messages": messages})
    assert answer.choices[0].message.content


def test_openai_sends_a_prompt_of_many_pages(client: OpenAI) -> None:
    """Longer than what the engine computes in one step, and new to it."""
    text = "".join(chr(33 + index * index % 89) for index in range(1000))
    fields = {**GREEDY, "messages": [{"role": "user", "content": text}]}
    answer = client.chat.completions.create(**fields)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 900
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_openai_calls_a_tool_with_a_nested_model(client: OpenAI) -> None:
    """Whose schema the client writes with `$defs`, beside another tool's."""

    class Trip(BaseModel):
        model_config = ConfigDict(extra="forbid")
        stops: tuple[Weather, Weather]
        home: Weather

    trip = openai.pydantic_function_tool(Trip, name="plan")
    named = {"type": "function", "function": {"name": "plan"}}
    for tools, choice in (([trip], "required"), ([WEATHER_TOOL, trip], named)):
        fields = {**CALL, "tools": tools, "tool_choice": choice, "max_tokens": 300}
        answer = client.chat.completions.parse(**fields).choices[0]
        assert answer.message.tool_calls is not None
        assert isinstance(answer.message.tool_calls[0].function.parsed_arguments, Trip)


def test_openai_parses_an_answer_into_a_pydantic_model(client: OpenAI) -> None:
    """The schema that the client makes of a model is followed, whole and streamed."""
    fields: dict[str, Any] = {
        "model": CHAT,
        "messages": HELLO,
        "response_format": Weather,
        "max_tokens": 90,
    }
    whole = client.chat.completions.parse(**fields)
    assert isinstance(whole.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(**fields) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)


def test_openai_says_where_a_parsed_answer_was_cut(client: OpenAI) -> None:
    """Too few tokens for the schema: finish_reason is length, which the client raises."""
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**GREEDY, "max_tokens": 2}, response_format=Weather)


def test_openai_completes_texts_and_tokens(client: OpenAI, live: Live) -> None:
    """The older endpoint: a batch in its order, echo, logprobs, and the same text streamed."""
    fields: dict[str, Any] = {"model": CHAT, "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(prompt=["Hello", "The quick"], logprobs=2, **fields)
    assert [0, 1] == [choice.index for choice in whole.choices]
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens
    text = whole.choices[1].text
    with client.completions.create(prompt="The quick", stream=True, **fields) as stream:
        assert text == "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    ids = live.api.tokenizer.text.encode("The quick", special_tokens=False)
    assert text == client.completions.create(prompt=ids, **fields).choices[0].text
    echoed = client.completions.create(prompt="The quick", echo=True, **fields)
    assert f"The quick{text}" == echoed.choices[0].text


ANSWER: dict[str, Any] = {
    "model": CHAT,
    "input": "Hello, how are you?",
    "temperature": 0,
    "max_output_tokens": 16,
}


async def test_openai_reads_the_same_response_whole_and_streamed(
    client: OpenAI, async_client: AsyncOpenAI
) -> None:
    """With the helper, which puts the events together, and without; usage adds up."""
    whole = client.responses.create(**ANSWER)
    assert whole.id.startswith("resp_")
    assert whole.status in ("completed", "incomplete")
    assert whole.usage is not None
    assert whole.usage.input_tokens + whole.usage.output_tokens == whole.usage.total_tokens
    with client.responses.stream(**ANSWER) as stream:
        parts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert whole.output_text == "".join(parts)
    events = [event async for event in await async_client.responses.create(**ANSWER, stream=True)]
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert whole.output_text == events[-1].response.output_text


def test_openai_parses_a_response_into_a_pydantic_model(client: OpenAI) -> None:
    """Whole and streamed."""
    fields: dict[str, Any] = {**ANSWER, "max_output_tokens": 90, "text_format": Weather}
    assert isinstance(client.responses.parse(**fields).output_parsed, Weather)
    with client.responses.stream(**fields) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Weather)


def test_openai_calls_a_function_in_a_response(client: OpenAI) -> None:
    """Parsed, and sent back as it came, with its result."""
    tool = openai.pydantic_function_tool(Weather, name="get_weather")["function"]
    fields: dict[str, Any] = {
        **ANSWER,
        "tools": [{"type": "function", **tool}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 200,
    }
    (call,) = client.responses.parse(**fields).output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    Weather.model_validate_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "25 degrees"}
    conversation: list[Any] = [{"role": "user", "content": "Hello"}, call, result]
    assert client.responses.create(**{**ANSWER, "input": conversation}).output_text


async def test_openai_reads_the_same_vectors_in_every_form(
    client: OpenAI, async_client: AsyncOpenAI, live: Live
) -> None:
    """Base64, which it asks for by itself, numbers, token ids, and a batch in its order."""
    default = client.embeddings.create(model=EMBEDDING, input=FOX)
    vector = default.data[0].embedding
    numbers = client.embeddings.create(model=EMBEDDING, input=FOX, encoding_format="float")
    assert pytest.approx(numbers.data[0].embedding, abs=1e-6) == vector
    ids = live.api.embedder.tokenizer.encode([FOX])[0]
    assert len(ids) == default.usage.prompt_tokens
    by_ids = await async_client.embeddings.create(model=EMBEDDING, input=ids)
    assert pytest.approx(by_ids.data[0].embedding, abs=1e-6) == vector
    batch = client.embeddings.create(model=EMBEDDING, input=[ids, ids[:3], ids])
    assert [0, 1, 2] == [item.index for item in batch.data]
    assert pytest.approx(batch.data[2].embedding, abs=1e-5) == vector
    assert 2 * len(ids) + 3 == batch.usage.total_tokens


def test_openai_lists_and_retrieves_models(client: OpenAI) -> None:
    """Aliases too, under the name that they were asked by."""
    names = [model.id for model in client.models.list()]
    assert [CHAT, EMBEDDING, "gpt-4o-mini"] == names
    assert [client.models.retrieve(name).id for name in names] == names


async def test_openai_keeps_files(
    client: OpenAI, async_client: AsyncOpenAI, tmp_path: Path
) -> None:
    """Uploaded from bytes, a path and a stream; listed, read, downloaded to disk and deleted."""
    lines = b'{"custom_id": "a"}\n' * 1000
    path = tmp_path / "input.jsonl"
    path.write_bytes(lines)
    policy: Any = {"anchor": "created_at", "seconds": 3600}
    made = client.files.create(file=path, purpose="batch", expires_after=policy)
    assert (made.filename, made.bytes, made.status) == ("input.jsonl", len(lines), "processed")
    assert made.expires_at == made.created_at + 3600
    with path.open("rb") as stream:
        again = await async_client.files.create(file=stream, purpose="user_data")
    assert again.expires_at is None
    named = client.files.create(file=("größe 1.txt", b"x"), purpose="user_data")
    assert named.filename == "größe 1.txt"

    listed = [file.id for file in client.files.list(limit=2)]
    assert {named.id, again.id, made.id} <= set(listed)
    assert made in client.files.list(purpose="batch", order="asc").data
    assert client.files.wait_for_processing(made.id) == made
    content = client.files.content(made.id)
    assert content.read() == lines
    copy = tmp_path / "copy"
    content.write_to_file(copy)
    assert copy.read_bytes() == lines
    async with async_client.files.with_streaming_response.content(again.id) as streamed:
        assert b"".join([chunk async for chunk in streamed.iter_bytes()]) == lines

    for file in (made, again, named):
        assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="Supported values are: 'batch'"):
        client.files.create(file=b"x", purpose="vision")


def test_openai_raises_its_own_error_classes(live: Live, client: OpenAI) -> None:
    """Each with the parameter, the code and the request's id."""
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**{**GREEDY, "temperature": 200})
    assert (bad.value.param, bad.value.code) == ("temperature", "decimal_above_max_value")
    assert (bad.value.request_id or "").startswith("req_")
    with pytest.raises(openai.NotFoundError) as absent:
        client.models.retrieve("gpt-9")
    assert (absent.value.param, absent.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="omai-sk-wrong").models.list()
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as long:
        client.embeddings.create(model=EMBEDDING, input="fox " * 100)
    assert long.value.code == "context_length_exceeded"


def test_openai_does_not_retry_what_no_wait_can_help(live: Live) -> None:
    """A request above the whole minute's tokens: one request is made, though it would retry."""
    key = live.new_key("basic")
    with OpenAI(base_url=live.base_url, api_key=key, max_retries=5) as client:
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(**{**GREEDY, "n": 128, "max_tokens": 1000})
        assert (limited.value.type, limited.value.code) == ("tokens", "rate_limit_exceeded")
        first = int(limited.value.response.headers["x-ratelimit-remaining-requests"])
        raw = client.with_raw_response.chat.completions.create(**GREEDY)
    assert first - int(raw.headers["x-ratelimit-remaining-requests"]) == 1


def test_openai_raises_where_a_stream_fails_midway(live: Live, client: OpenAI) -> None:
    """With what was sent before; the cause stays in the server."""
    live.api.chat.failure = (1, RuntimeError("secret cause"))
    try:
        with client.chat.completions.create(**{**GREEDY, "max_tokens": 60}, stream=True) as stream:
            assert next(stream).choices
            with pytest.raises(openai.APIError) as failed:
                list(stream)
    finally:
        live.api.chat.failure = None
    assert "secret cause" not in str(failed.value)
    assert failed.value.type == "server_error"
