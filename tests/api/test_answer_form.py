"""Answers of a given form: JSON, a schema, calls that have to be made."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.api.conftest import Api, events
from tests.api.shapes import check

PERSON = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "old": {"type": "boolean"},
        "legs": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["kind", "old", "legs"],
    "additionalProperties": False,
}


def schema_format(schema: Any, **fields: Any) -> dict[str, Any]:
    """Return a response_format with a schema."""
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, **fields}}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    """Return a tool."""
    parameters = parameters or {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("seed", range(5))
async def test_a_schema_is_followed_whatever_the_model_would_say(api: Api, seed: int) -> None:
    """By a model with random weights, hot; and the answer ends when it is complete."""
    fields = {
        "temperature": 1.5,
        "seed": seed,
        "max_tokens": 90,
        "response_format": schema_format(PERSON),
    }
    answer = (await api.complete(await api.headers(), **fields)).json()
    check(answer, "CreateChatCompletionResponse")
    (choice,) = answer["choices"]
    jsonschema.validate(json.loads(choice["message"]["content"]), PERSON)
    assert choice["finish_reason"] == "stop"


async def test_json_object_is_one_object(api: Api) -> None:
    """Started with a brace, and JSON as far as it got."""
    fields = {"response_format": {"type": "json_object"}, "logit_bias": {}, "max_tokens": 30}
    answer = (await api.complete(await api.headers(), **fields)).json()
    (choice,) = answer["choices"]
    assert choice["message"]["content"].lstrip().startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_named_tool_is_called_with_arguments_of_its_schema(api: Api, stream: bool) -> None:
    """Whole and streamed; only that tool, once."""
    fields = {
        "tools": [tool("a"), tool("b")],
        "tool_choice": {"type": "function", "function": {"name": "b"}},
        "parallel_tool_calls": False,
        "temperature": 1.2,
        "seed": 3,
        "max_tokens": 90,
        "stream": stream,
    }
    response = await api.complete(await api.headers(), **fields)
    if stream:
        choices = [c for chunk in events(response.text)[:-1] for c in chunk["choices"]]
        calls = [call for c in choices for call in c["delta"].get("tool_calls", [])]
        finish = choices[-1]["finish_reason"]
    else:
        (choice,) = response.json()["choices"]
        calls, finish = choice["message"]["tool_calls"], choice["finish_reason"]
    (call,) = calls
    assert call["function"]["name"] == "b"
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    assert finish == "tool_calls"


async def test_required_calls_one_of_the_tools(api: Api) -> None:
    """Several may be called; the text around them is empty."""
    fields = {"tools": [tool("a"), tool("b")], "tool_choice": "required", "max_tokens": 90}
    (choice,) = (await api.complete(await api.headers(), **fields)).json()["choices"]
    names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
    assert names
    assert set(names) <= {"a", "b"}
    assert choice["finish_reason"] == "tool_calls"


async def test_a_schema_beside_tools_leaves_both_open(api: Api) -> None:
    """Either the schema's JSON or calls."""
    fields = {
        "tools": [tool("a")],
        "response_format": schema_format(PERSON),
        "max_tokens": 80,
        "parallel_tool_calls": False,
    }
    (choice,) = (await api.complete(await api.headers(), **fields)).json()["choices"]
    if choice["finish_reason"] == "tool_calls":
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "a"
    else:
        jsonschema.validate(json.loads(choice["message"]["content"]), PERSON)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": schema_format({"type": "nope"})}, "response_format", "nope"),
        ({"response_format": schema_format({"$ref": "#/x"})}, "response_format", "x"),
        ({"response_format": schema_format({"$ref": "http://x/"})}, "response_format", "http://x/"),
        (
            {"tools": [tool("a", {"type": "object", "properties": {"x": {"type": "y"}}})]},
            "tools",
            "y",
        ),
        ({"tools": None}, "tool_choice", "'tools'"),
        (
            {
                "tools": [tool("a")],
                "tool_choice": {"type": "function", "function": {"name": "c"}},
            },
            "tool_choice",
            "'c'",
        ),
    ],
)
async def test_a_form_that_cannot_be_is_refused_by_name(
    api: Api, fields: dict[str, Any], param: str, words: str
) -> None:
    """With the parameter and what is wrong with it; the next request is served."""
    if "response_format" not in fields:
        fields = {"tool_choice": "required", **fields}
    headers = await api.headers()
    response = await api.complete(headers, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert (await api.complete(headers)).status_code == 200
