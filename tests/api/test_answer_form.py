"""Answers of a given form: JSON, a schema, calls that have to be made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from omai_ray.api.answer_form import answer_grammar
from omai_ray.api.schemas.chat import ChatRequest
from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.grammar import Grammars
from omai_ray.text.tokenizer import TextTokenizer
from tests.api.conftest import Api, events
from tests.api.shapes import check
from tests.checkpoints import save_chat_checkpoint

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
    """Several may be called; where there is no room for the last, it is left out and said so."""
    fields = {"tools": [tool("a"), tool("b")], "tool_choice": "required", "max_tokens": 90}
    headers = await api.headers()
    (choice,) = (await api.complete(headers, **fields)).json()["choices"]
    names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
    assert names
    assert set(names) <= {"a", "b"}
    assert choice["message"]["content"] is None
    (short,) = (await api.complete(headers, **{**fields, "max_tokens": 10})).json()["choices"]
    assert short["finish_reason"] == "length"
    assert short["message"] == {"role": "assistant", "content": "", "refusal": None}
    one = {**fields, "parallel_tool_calls": False}
    (single,) = (await api.complete(headers, **one)).json()["choices"]
    assert len(single["message"]["tool_calls"]) == 1
    assert single["finish_reason"] == "tool_calls"


NESTED = {
    "$defs": {"City": {"enum": ["Rome", "Oslo"]}, "Place": {"$ref": "#/$defs/City"}},
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/Place"}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("others", [[], [tool("b")]])
async def test_a_tools_schema_may_refer_to_its_own_definitions(
    api: Api, others: list[dict[str, Any]]
) -> None:
    """As every nested pydantic model's does; alone and beside other tools."""
    named = {"type": "function", "function": {"name": "a"}}
    fields = {"tools": [*others, tool("a", NESTED)], "tool_choice": named, "max_tokens": 150}
    (choice,) = (await api.complete(await api.headers(), **fields)).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), NESTED)
    strict = tool("a", NESTED)
    strict["function"]["strict"] = True
    fields = {"tools": [*others, strict], "tool_choice": "required", "max_tokens": 150}
    answer = await api.complete(await api.headers(), **fields)
    assert answer.status_code == 200


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


@pytest.fixture(params=["plain", "tokens"])
def tokens_of(request: pytest.FixtureRequest, chat_checkpoint: Path) -> Path:
    """Return a tokenizer that spells a call's tags, and one that has tokens for them."""
    if request.param == "plain":
        return chat_checkpoint
    return locate(ModelSpec(name="m", task="chat", source="builtin:omai-chat-small"))


def follows(directory: Path, fields: dict[str, Any], text: str) -> bool:
    """Whether a whole answer is of the form that a request asks for."""
    tokenizer = TextTokenizer(directory)
    body = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    )
    grammar = answer_grammar(body, tokenizer)
    assert grammar is not None
    end = 0
    constraint = Grammars(directory / "tokenizer.json", tokenizer.vocab_size, [end]).start(grammar)
    for token in tokenizer.encode(text, special_tokens=False):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return bool(constraint.allowed()[end])


ROME = '<tool_call>{"name": "a", "arguments": {"city": "Rome"}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("", True),
        ("Just <b>text</b>.\n", True),
        (ROME, True),
        (f"I look.\n{ROME}\n{ROME} done", True),
        (ROME.replace("Rome", "Paris"), False),
        (ROME.replace('"a"', '"c"'), False),
        ("so <tool_call>then nothing", False),
        (ROME[: -len("</tool_call>")], False),
    ],
)
def test_calls_of_strict_tools_are_valid_where_the_model_may_choose(
    tokens_of: Path, text: str, fine: bool
) -> None:
    """Any text, and calls that follow the schemas."""
    strict = tool("a")
    strict["function"]["strict"] = True
    assert follows(tokens_of, {"tools": [strict, tool("b")]}, text) == fine


def test_at_most_one_call_where_there_are_no_parallel_ones(tokens_of: Path) -> None:
    """Text before it, none after."""
    strict = tool("a")
    strict["function"]["strict"] = True
    fields = {"tools": [strict], "parallel_tool_calls": False}
    assert follows(tokens_of, fields, f"Well: {ROME}")
    assert not follows(tokens_of, fields, f"{ROME} {ROME}")


def test_a_call_that_has_to_be_made_is_written_with_the_models_own_tags(tokens_of: Path) -> None:
    """As it was trained to write it, one token each where it has them."""
    fields = {"tools": [tool("a")], "tool_choice": "required"}
    assert follows(tokens_of, fields, ROME)
    assert not follows(tokens_of, fields, f"Well: {ROME}")


def test_tools_that_are_not_strict_leave_the_model_free(tokens_of: Path) -> None:
    """What it writes is read as calls where it is some."""
    body = ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "tools": [tool("a")],
        }
    )
    assert answer_grammar(body, TextTokenizer(tokens_of)) is None


def allowed(mode: str, *names: str) -> dict[str, Any]:
    """Return a tool_choice of some tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("seed", range(3))
async def test_only_allowed_tools_are_called(api: Api, seed: int) -> None:
    """One of them has to be with `required`; the prompt tells of all tools, as without."""
    headers = await api.headers()
    tools = [tool("a"), tool("b"), tool("c")]
    fields = {"tools": tools, "temperature": 1.5, "seed": seed, "max_tokens": 120}
    fields |= {"parallel_tool_calls": False}
    answer = (await api.complete(headers, **fields, tool_choice=allowed("required", "b"))).json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "b"
    free = (await api.complete(headers, **fields, tool_choice="auto")).json()
    assert free["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("mode", "names", "forced", "callable_"),
    [
        ("auto", ["b"], False, ["b"]),
        ("required", ["a", "c"], True, ["a", "c"]),
        ("required", ["a", "a"], True, ["a"]),
    ],
)
def test_allowed_tools_make_a_grammar_of_theirs(
    tmp_path: Path, mode: str, names: list[str], forced: bool, callable_: list[str]
) -> None:
    """With `auto` text is free, and a call is of one of them."""
    directory = save_chat_checkpoint(tmp_path)
    body = ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "tools": [tool("a"), tool("b"), tool("c")],
            "tool_choice": allowed(mode, *names),
        }
    )
    grammar = answer_grammar(body, TextTokenizer(directory))
    assert grammar is not None
    assert forced == ("SAID" not in grammar.source)
    for name in "abc":
        assert (name in callable_) == (f'{{"const": "{name}"}}' in grammar.source)


async def test_allowed_tools_have_to_be_there(api: Api) -> None:
    """Refused by name."""
    fields = {"tools": [tool("a")], "tool_choice": allowed("auto", "a", "z")}
    response = await api.complete(await api.headers(), **fields)
    assert response.status_code == 400
    assert "'z'" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "tool_choice"


@pytest.mark.parametrize("seed", range(3))
async def test_structured_outputs_keep_a_regex_or_a_choice(api: Api, seed: int) -> None:
    """The forms that OpenAI has no name for."""
    headers = await api.headers()
    hot = {"temperature": 1.5, "seed": seed, "max_tokens": 40}
    form: dict[str, Any] = {"regex": "[A-F][0-9]{3}"}
    answer = (await api.complete(headers, **hot, structured_outputs=form)).json()
    assert re.fullmatch("[A-F][0-9]{3}", answer["choices"][0]["message"]["content"])
    form = {"choice": ["yes", 'no "really"', "perhaps\n"]}
    answer = (await api.complete(headers, **hot, structured_outputs=form)).json()
    assert answer["choices"][0]["message"]["content"] in form["choice"]


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({}, "structured_outputs"),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs"),
        ({"regex": "("}, "structured_outputs"),
        ({"regex": "a" * 5000}, "structured_outputs.regex"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"grammar": "start: x"}, "structured_outputs.grammar"),
    ],
)
async def test_structured_outputs_that_mean_nothing_are_refused(
    api: Api, form: dict[str, Any], param: str
) -> None:
    """By name."""
    response = await api.complete(await api.headers(), structured_outputs=form)
    assert response.status_code == 400, response.text
    assert param == response.json()["error"]["param"]


async def test_sampling_settings_of_other_servers_are_honoured(api: Api) -> None:
    """top_k 1 and min_p 1 are greedy however hot; a repetition penalty changes the answer."""
    headers = await api.headers()
    fields = {"max_tokens": 60, "seed": 5}
    greedy = (await api.complete(headers, **fields, temperature=0)).json()["choices"]
    for setting in ({"top_k": 1}, {"min_p": 1.0}):
        hot = (await api.complete(headers, **fields, temperature=2, **setting)).json()["choices"]
        assert greedy == hot
    penalised = await api.complete(headers, **fields, temperature=0, repetition_penalty=9.0)
    assert greedy != penalised.json()["choices"]


async def test_unique_schemas_leave_no_file(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled grammars are kept in memory (CVE-2025-29770)."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("HOME", str(empty))
    monkeypatch.setenv("TMPDIR", str(empty))
    headers = await api.headers()
    for number in range(140):
        form = schema_format({"type": "object", "properties": {f"p{number}": {"const": number}}})
        response = await api.complete(headers, response_format=form, max_tokens=1)
        assert response.status_code == 200
    assert not any(empty.iterdir())
