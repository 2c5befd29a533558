"""POST /v1/responses."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from omai_ray.api.responses import as_chat
from omai_ray.api.schemas.responses import ResponseRequest
from omai_ray.api.validation import parse_body
from omai_ray.errors import InvalidRequest, Overloaded
from tests.api.conftest import CHAT, CONTEXT, Api
from tests.api.shapes import check, check_error

pytestmark = pytest.mark.asyncio(loop_scope="session")

EVENTS = {
    "response.created": "ResponseCreatedEvent",
    "response.in_progress": "ResponseInProgressEvent",
    "response.output_item.added": "ResponseOutputItemAddedEvent",
    "response.content_part.added": "ResponseContentPartAddedEvent",
    "response.output_text.delta": "ResponseTextDeltaEvent",
    "response.output_text.done": "ResponseTextDoneEvent",
    "response.content_part.done": "ResponseContentPartDoneEvent",
    "response.output_item.done": "ResponseOutputItemDoneEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneEvent",
    "response.completed": "ResponseCompletedEvent",
    "response.incomplete": "ResponseIncompleteEvent",
    "response.failed": "ResponseFailedEvent",
    "error": "ResponseErrorEvent",
}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TIME = {**WEATHER, "name": "get_time"}
ANIMAL = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "old": {"type": "boolean"}},
    "required": ["kind", "old"],
    "additionalProperties": False,
}
ENOUGH = {"max_output_tokens": 100}


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


async def respond(api: Api, headers: dict[str, str], **fields: Any) -> httpx.Response:
    """Ask for a short greedy response, unless fields say otherwise."""
    body = {"model": CHAT, "input": "Hello", "temperature": 0, "max_output_tokens": 16, **fields}
    body = {name: value for name, value in body.items() if value is not ...}
    return await api.client.post("/v1/responses", headers=headers, json=body)


def parsed(text: str) -> list[dict[str, Any]]:
    """Return a stream's events, each checked against its schema and its line."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        first, second = block.split("\n")
        event = json.loads(second.removeprefix("data: "))
        assert first == f"event: {event['type']}"
        check(event, EVENTS[event["type"]])
        found.append(event)
    assert list(range(len(found))) == [event["sequence_number"] for event in found]
    return found


def without_ids(value: Any) -> Any:
    """Return a response without what differs from call to call."""
    if isinstance(value, dict):
        changing = ("id", "call_id", "created_at", "completed_at", "input_tokens_details")
        return {key: without_ids(item) for key, item in value.items() if key not in changing}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


async def test_a_text_is_answered_as_a_chat_would(api: Api) -> None:
    """The same words and the same counts as a user's message, in the form of a response."""
    headers = await api.headers()
    response = await respond(api, headers, instructions="Be brief.", metadata={"a": "b"})
    assert response.status_code == 200, response.text
    answer = response.json()
    check(answer, "Response")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    chat = (await api.complete(headers, messages=messages, max_tokens=16)).json()
    (message,) = answer["output"]
    (part,) = message["content"]
    assert chat["choices"][0]["message"]["content"] == part["text"]
    assert chat["usage"]["prompt_tokens"] == answer["usage"]["input_tokens"]
    assert chat["usage"]["completion_tokens"] == answer["usage"]["output_tokens"]
    assert answer["metadata"] == {"a": "b"}
    assert answer["instructions"] == "Be brief."
    assert answer["store"] is False


async def test_items_are_a_conversation(api: Api) -> None:
    """Messages, an earlier answer as it came, calls and their outputs are what a chat has."""
    headers = await api.headers()
    arguments = '{"city": "Rome"}'
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Wait.", "annotations": []}],
        },
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "get_weather",
            "arguments": arguments,
            "id": "fc_1",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c2", "name": "get_time", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c1", "output": "Sunny"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "Noon"}],
        },
    ]
    calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for call_id, name in (("c1", "get_weather"), ("c2", "get_time"))
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "Sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "Noon"},
    ]
    answer = (await respond(api, headers, input=items, tools=[WEATHER, TIME])).json()
    check(answer, "Response")
    tools = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        for tool in (WEATHER, TIME)
    ]
    chat = (await api.complete(headers, messages=messages, tools=tools, max_tokens=16)).json()
    assert chat["usage"]["prompt_tokens"] == answer["usage"]["input_tokens"]
    assert chat["choices"][0]["message"]["content"] == answer["output"][0]["content"][0]["text"]


async def test_an_answer_may_be_sent_back_as_it_came(api: Api) -> None:
    """All output items, a message and a call, are input items."""
    headers = await api.headers()
    fields = {**ENOUGH, "tools": [WEATHER]}
    called = (await respond(api, headers, **fields, tool_choice="required")).json()
    check(called, "Response")
    said = (await respond(api, headers)).json()
    assert "function_call" in [item["type"] for item in called["output"]]
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "Sunny"}
        for item in called["output"]
        if item["type"] == "function_call"
    ]
    items = [{"role": "user", "content": "Hi"}, *said["output"], *called["output"], *outputs]
    assert (await respond(api, headers, input=items, **fields)).status_code == 200


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.5, "seed": ...}, ENOUGH])
async def test_a_stream_builds_up_the_whole_response(api: Api, fields: dict[str, Any]) -> None:
    """In OpenAI's order of events; the last has all of it."""
    headers = await api.headers()
    response = await respond(api, headers, **fields, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parsed(response.text)
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert set(kinds[4:-4]) <= {"response.output_text.delta"}
    text = "".join(event["delta"] for event in events[4:-4])
    final = events[-1]["response"]
    (message,) = final["output"]
    assert message["content"][0]["text"] == text == events[-4]["text"]
    assert kinds[-1] == f"response.{final['status']}"
    assert message["status"] == final["status"]
    if final["status"] == "incomplete":
        assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["usage"]["output_tokens"] > 0
    if fields.get("temperature") is None:
        whole = (await respond(api, headers, **fields)).json()
        assert without_ids(whole) == without_ids(final)


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    ],
)
async def test_a_function_is_called_in_both_forms(api: Api, choice: Any) -> None:
    """Arguments keep the schema; the stream's items are the whole's."""
    headers = await api.headers()
    fields = {**ENOUGH, "tools": [WEATHER, TIME], "tool_choice": choice}
    fields |= {"parallel_tool_calls": False}
    whole = (await respond(api, headers, **fields)).json()
    check(whole, "Response")
    (call,) = whole["output"]
    assert call["type"] == "function_call"
    assert whole["status"] == "completed"
    jsonschema.validate(json.loads(call["arguments"]), WEATHER["parameters"])
    if choice != "required":
        assert call["name"] == "get_weather"
    assert whole["tool_choice"] == choice
    assert whole["tools"] == [WEATHER, TIME]

    events = parsed((await respond(api, headers, **fields, stream=True)).text)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert call["arguments"] == events[3]["delta"] == events[4]["arguments"]
    assert without_ids(whole) == without_ids(events[-1]["response"])


@pytest.mark.parametrize("stream", [False, True])
async def test_text_format_keeps_a_schema(api: Api, stream: bool) -> None:
    """As response_format does for chats."""
    form = {"type": "json_schema", "name": "animal", "schema": ANIMAL, "strict": True}
    fields = {**ENOUGH, "text": {"format": form}, "stream": stream}
    response = await respond(api, await api.headers(), **fields)
    answer = parsed(response.text)[-1]["response"] if stream else response.json()
    check(answer, "Response")
    jsonschema.validate(json.loads(answer["output"][0]["content"][0]["text"]), ANIMAL)
    assert answer["text"] == {"format": form}


async def test_logprobs_are_included_where_they_are_asked_for(api: Api) -> None:
    """With the text, and with each of its deltas."""
    headers = await api.headers()
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = (await respond(api, headers, **fields)).json()
    check(whole, "Response")
    told = whole["output"][0]["content"][0]["logprobs"]
    assert len(told) > 0
    assert all(len(token["top_logprobs"]) == 2 for token in told)
    events = parsed((await respond(api, headers, **fields, stream=True)).text)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert told == [token for event in deltas for token in event["logprobs"]]
    plain = (await respond(api, headers)).json()
    assert plain["output"][0]["content"][0]["logprobs"] == []


async def test_a_failure_in_mid_stream_is_an_error_event_and_a_failed_response(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last events; the request is recorded."""
    monkeypatch.setattr(api.chat, "failure", (1, Overloaded("The queue is full.")))
    response = await respond(api, await api.headers(), max_output_tokens=200, stream=True)
    assert response.status_code == 200
    *_, told, last = parsed(response.text)
    assert told["type"] == "error"
    assert told["code"] == "server_is_overloaded"
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "The queue is full."


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"input": ...}, "input", "missing_required_parameter", "input"),
        ({"input": []}, "input", "array_below_min_length", "1"),
        ({"input": 3}, "input", "invalid_type", "string"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", "invalid_value", "user"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "invalid_value", ""),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "invalid_value",
            "input_text",
        ),
        ({"input": "x " * 2 * CONTEXT}, "input", "context_length_exceeded", str(CONTEXT)),
        ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value", ">= 16"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter", ""),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter", ""),
        ({"background": True}, "background", "invalid_value", "False"),
        ({"truncation": "auto"}, "truncation", "invalid_value", "disabled"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter", "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value", "function"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value", "tools"),
        ({"include": ["everything"]}, "include[0]", "invalid_value", "logprobs"),
        ({"stream_options": {}}, None, "invalid_value", "stream"),
        ({"messages": []}, "messages", "unknown_parameter", "mean 'input'?"),
        ({"input": ..., "messages": []}, "messages", "unknown_parameter", "mean 'input'?"),
        ({"max_tokens": 5}, "max_tokens", "unknown_parameter", "mean 'max_output_tokens'?"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}},
            "text.format",
            "invalid_value",
            "",
        ),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "invalid_value", "medium"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    api: Api, fields: dict[str, Any], param: str | None, code: str, words: str
) -> None:
    """In the names of this endpoint, what needs a memory of the server's among it."""
    response = await respond(api, await api.headers(), **fields)
    assert response.status_code == 400, response.text
    check_error(response.json(), type="invalid_request_error", code=code, param=param)
    assert words in response.json()["error"]["message"]


async def test_many_calls_in_a_row_are_one_message() -> None:
    """Converted in a time that grows with their number alone."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    said = {"role": "assistant", "content": "Wait."}
    body = parse_body(
        json.dumps({"model": "m", "input": [said, *[call] * 4000]}).encode(), ResponseRequest
    )
    (message,) = as_chat(body).messages
    assert message.model_dump()["content"] == "Wait."
    assert len(message.model_dump()["tool_calls"]) == 4000


async def test_a_conversation_has_a_bounded_number_of_items() -> None:
    """More are refused before they are looked at."""
    items = [{"role": "user", "content": "a"}] * 5000
    body = json.dumps({"model": CHAT, "input": items}).encode()
    with pytest.raises(InvalidRequest, match="maximum length 4999"):
        parse_body(body, ResponseRequest)
