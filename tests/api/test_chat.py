from __future__ import annotations

import asyncio
from typing import Any

import pytest

from omai_ray.api.chat import begins, session_of
from omai_ray.api.schemas.chat import ChatRequest
from omai_ray.errors import Overloaded
from tests.api.conftest import CHAT, CONTEXT, Api, events
from tests.api.shapes import check, check_error

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
# Hot and seeded: the random model then writes half characters and control bytes too.
WILD = {"temperature": 1.5, "seed": 11, "max_tokens": 60}


def text_of(chunks: list[Any], index: int = 0) -> str:
    """Return the text that a stream's chunks give a choice."""
    choices = [choice for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"]]
    return "".join(c["delta"].get("content") or "" for c in choices if c["index"] == index)


async def test_the_references_chat_request_gets_the_references_answer(api: Api) -> None:
    """The body of the API reference is answered with every key that it shows."""
    body = {
        "model": "omai-gpt-4",
        "messages": [{"role": "user", "content": "Hello, how are you?"}],
        "temperature": 0.7,
        "max_tokens": 1000,
    }
    response = await api.client.post(
        "/v1/chat/completions", headers=await api.headers("basic"), json=body
    )
    assert response.status_code == 200
    answer = response.json()
    check(answer, "CreateChatCompletionResponse")
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "omai-gpt-4"
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


async def test_prompt_tokens_are_those_of_the_rendered_template(api: Api) -> None:
    """Usage counts what the model reads, template included."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = (await api.complete(await api.headers(), messages=messages)).json()
    assert len(api.tokenizer.render(messages)) == answer["usage"]["prompt_tokens"]


async def test_a_stream_has_the_role_first_a_reason_last_and_done(api: Api) -> None:
    """Each chunk keeps the schema; ids and times are one; the last event is [DONE]."""
    response = await api.complete(await api.headers(), stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    for chunk in chunks:
        check(chunk, "CreateChatCompletionStreamResponse")
        assert "usage" not in chunk
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


async def test_include_usage_adds_one_chunk_without_choices(api: Api) -> None:
    """Every chunk has `usage: null`, the one before [DONE] has the numbers."""
    headers = await api.headers()
    whole = (await api.complete(headers)).json()
    response = await api.complete(headers, stream=True, stream_options={"include_usage": True})
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    check(last, "CreateChatCompletionStreamResponse")
    assert last["choices"] == []
    first, second = (
        usage.pop("prompt_tokens_details") for usage in (whole["usage"], last["usage"])
    )
    assert whole["usage"] == last["usage"]
    assert first == {"cached_tokens": 0}
    assert second == {"cached_tokens": whole["usage"]["prompt_tokens"] - 1}


@pytest.mark.parametrize("seed", range(4))
async def test_streamed_text_is_the_whole_text_of_the_same_seed(api: Api, seed: int) -> None:
    """Streaming changes when text arrives, never which."""
    headers = await api.headers()
    fields = {**WILD, "seed": seed, "n": 2}
    whole = (await api.complete(headers, **fields)).json()
    chunks = events((await api.complete(headers, **fields, stream=True)).text)
    for choice in whole["choices"]:
        assert choice["message"]["content"] == text_of(chunks, choice["index"])


async def test_n_choices_differ_each_with_its_own_role_and_reason(api: Api) -> None:
    """`n` gives so many choices, numbered from 0; the prompt is counted once."""
    headers = await api.headers()
    one = (await api.complete(headers, **WILD)).json()
    three = (await api.complete(headers, **WILD, n=3)).json()
    assert [0, 1, 2] == [choice["index"] for choice in three["choices"]]
    assert one["choices"][0] == three["choices"][0]
    assert len({choice["message"]["content"] for choice in three["choices"]}) == 3
    assert one["usage"]["prompt_tokens"] == three["usage"]["prompt_tokens"]
    chunks = events((await api.complete(headers, **WILD, n=3, stream=True)).text)
    choices = [choice for chunk in chunks[:-1] for choice in chunk["choices"]]
    for index in range(3):
        mine = [choice for choice in choices if choice["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        reasons = [c["finish_reason"] for c in mine if c["finish_reason"]]
        assert reasons == [three["choices"][index]["finish_reason"]]


async def test_logprobs_come_with_each_token_whole_and_streamed(api: Api) -> None:
    """`top_logprobs` alternatives for each token, the same in both forms."""
    headers = await api.headers()
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    answer = (await api.complete(headers, **fields)).json()
    check(answer, "CreateChatCompletionResponse")
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert answer["usage"]["completion_tokens"] == len(tokens)
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)
    chunks = events((await api.complete(headers, **fields, stream=True)).text)[:-1]
    for chunk in chunks:
        check(chunk, "CreateChatCompletionStreamResponse")
    streamed = [
        token
        for chunk in chunks
        for choice in chunk["choices"]
        for token in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [token["token"] for token in tokens] == [token["token"] for token in streamed]


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(api: Api) -> None:
    """The answer is the text before the stop string, with reason `stop`."""
    headers = await api.headers()
    fields = {**WILD, "temperature": 1.0}
    text = (await api.complete(headers, **fields)).json()["choices"][0]["message"]["content"]
    stop = text[10:13]
    answer = (await api.complete(headers, **fields, stop=[stop])).json()
    assert text[: text.index(stop)] == answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    chunks = events((await api.complete(headers, **fields, stop=stop, stream=True)).text)
    assert text[: text.index(stop)] == text_of(chunks)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_either_name_of_the_limit_limits(api: Api, name: str) -> None:
    """`max_tokens` and `max_completion_tokens` are one setting; reaching it is `length`."""
    answer = (await api.complete(await api.headers(), **{"max_tokens": ..., name: 3})).json()
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_conversation_with_every_kind_of_message_is_read(api: Api) -> None:
    """Text parts, developer, earlier answers as they came, tool calls and tool results."""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}], "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    response = await api.complete(await api.headers(), messages=messages, tools=[TOOL])
    assert response.status_code == 200, response.text


async def test_fields_that_cannot_change_the_answer_are_accepted(api: Api) -> None:
    """`user`, `metadata`, `store` and the like are taken, and change nothing."""
    headers = await api.headers()
    plain = (await api.complete(headers)).json()
    extra = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "prompt_cache_key": "k",
    }
    answer = (await api.complete(headers, **extra)).json()
    assert plain["choices"] == answer["choices"]


async def test_a_prompt_above_the_context_names_both_numbers(api: Api) -> None:
    """The error says how many tokens are accepted and how many were asked for."""
    messages = [{"role": "user", "content": "Hello " * CONTEXT}]
    response = await api.complete(await api.headers(), messages=messages, max_tokens=...)
    assert response.status_code == 400
    check_error(
        response.json(),
        type="invalid_request_error",
        code="context_length_exceeded",
        param="messages",
    )
    message = response.json()["error"]["message"]
    assert str(CONTEXT) in message
    assert str(len(api.tokenizer.render(messages))) in message


async def test_a_completion_above_the_context_is_refused_not_cut(api: Api) -> None:
    """Prompt and `max_tokens` together may not exceed the context."""
    response = await api.complete(await api.headers(), max_tokens=CONTEXT)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_an_early_failure_keeps_its_status(api: Api) -> None:
    """What fails before the first token is a response of its own, stream or not."""
    api.chat.failure = (0, Overloaded("The model has 9 requests waiting."))
    headers = await api.headers()
    for stream in (False, True):
        response = await api.complete(headers, stream=stream)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.headers["retry-after-ms"] == "1000"
        check_error(response.json(), type="server_error", code="server_is_overloaded", param=None)


async def test_a_failure_in_mid_stream_is_an_event_and_no_done(api: Api) -> None:
    """The error is the last event; its text is ours, not the exception's."""
    api.chat.failure = (1, RuntimeError("canary-in-exception"))
    response = await api.complete(await api.headers(), **WILD, stream=True)
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    check_error(last, type="server_error", code="internal_error", param=None)
    assert "canary-in-exception" not in response.text
    assert response.headers["x-request-id"] in last["error"]["message"]
    assert api.chat.running == 0


async def test_an_unexpected_failure_is_a_500_without_its_text(api: Api) -> None:
    """The client gets the envelope and the request id, never what the exception says."""
    api.chat.failure = (1, RuntimeError("canary-in-exception"))
    response = await api.complete(await api.headers(), **WILD)
    assert response.status_code == 500
    check_error(response.json(), type="server_error", code="internal_error", param=None)
    assert "canary-in-exception" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]["message"]


async def test_an_alias_is_served_by_its_model(api: Api) -> None:
    """The answer names the model that gave it."""
    answer = (await api.complete(await api.headers(), model="gpt-4o-mini")).json()
    assert answer["model"] == CHAT


@pytest.mark.parametrize(
    ("model", "word"), [("gpt-5", "does not exist"), ("text-embedding-ada-002", "embedding")]
)
async def test_an_unknown_model_is_not_found(api: Api, model: str, word: str) -> None:
    """A model that is not served, or does something else, is a 404 naming it."""
    response = await api.complete(await api.headers(), model=model)
    assert response.status_code == 404
    check_error(
        response.json(), type="invalid_request_error", code="model_not_found", param="model"
    )
    assert model in response.json()["error"]["message"]
    assert word in response.json()["error"]["message"]


async def test_concurrent_requests_are_answered_as_alone(api: Api) -> None:
    """Sharing a batch changes no greedy answer."""
    headers = await api.headers()
    prompts = ["Hello", "The quick brown fox", "user"]
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    alone = [(await api.complete(headers, messages=m)).json()["choices"] for m in messages]
    together = await asyncio.gather(*(api.complete(headers, messages=m) for m in messages))
    assert alone == [response.json()["choices"] for response in together]


def test_the_turns_of_a_conversation_are_one_session() -> None:
    """Up to the first message that is no instruction; the client's own key comes before that."""

    def request(*messages: tuple[str, str], **fields: Any) -> ChatRequest:
        said = [{"role": role, "content": content} for role, content in messages]
        return ChatRequest.model_validate({"model": "m", "messages": said, **fields})

    def session(*messages: tuple[str, str], **fields: Any) -> str:
        return session_of(request(*messages, **fields))

    system, first = ("system", "Be brief."), ("user", "Hello")
    turns = session(system, first, ("assistant", "Hi"), ("user", "Go on"))
    assert session(system, first) == turns
    assert session(system, ("user", "Good day")) != turns
    assert session(("system", "Be long."), first) != turns
    assert session(system, first, prompt_cache_key="mine") == "mine"

    assert begins(request(system, first))
    assert not begins(request(system, first, ("assistant", "Hi"), ("user", "Go on")))
    assert not begins(request(system, first, prompt_cache_key="mine"))
