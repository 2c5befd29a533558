"""What a request may not be: each refusal names the field, the value and the limit."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from omai_ray.api.schemas.chat import ChatRequest
from omai_ray.api.schemas.embeddings import EmbeddingRequest
from omai_ray.api.validation import parse_body
from omai_ray.errors import InvalidRequest
from tests.api.conftest import CHAT, EMBEDDING, HELLO, MAX_BODY_BYTES, Api, Exchange, chat_body
from tests.api.shapes import check_error

pytestmark = pytest.mark.asyncio(loop_scope="session")

FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


def above(name: str, kind: str, limit: int, given: Any) -> tuple[str, str]:
    """Return the code and message of a number above its maximum."""
    return f"{kind}_above_max_value", (
        f"Invalid '{name}': {kind} above maximum value. "
        f"Expected a value <= {limit}, but got {given} instead."
    )


def below(name: str, kind: str, limit: int, given: Any) -> tuple[str, str]:
    """Return the code and message of a number below its minimum."""
    return f"{kind}_below_min_value", (
        f"Invalid '{name}': {kind} below minimum value. "
        f"Expected a value >= {limit}, but got {given} instead."
    )


def wrong_type(name: str, expected: str, got: str) -> tuple[str, str]:
    """Return the code and message of a value of another type."""
    message = f"Invalid type for '{name}': expected {expected}, but got {got} instead."
    return "invalid_type", message


@pytest.mark.parametrize(
    ("name", "given", "refusal"),
    [
        ("temperature", 200, above("temperature", "decimal", 2, 200)),
        ("temperature", 2.01, above("temperature", "decimal", 2, 2.01)),
        ("temperature", -0.5, below("temperature", "decimal", 0, -0.5)),
        ("temperature", "hot", wrong_type("temperature", "a decimal", "a string")),
        ("temperature", True, wrong_type("temperature", "a decimal", "a boolean")),
        ("top_p", 1.5, above("top_p", "decimal", 1, 1.5)),
        ("top_p", -1, below("top_p", "decimal", 0, -1)),
        ("presence_penalty", 2.5, above("presence_penalty", "decimal", 2, 2.5)),
        ("presence_penalty", -3, below("presence_penalty", "decimal", -2, -3)),
        ("frequency_penalty", 3, above("frequency_penalty", "decimal", 2, 3)),
        ("frequency_penalty", -3, below("frequency_penalty", "decimal", -2, -3)),
        ("n", 0, below("n", "integer", 1, 0)),
        ("n", 129, above("n", "integer", 128, 129)),
        ("n", 10**6, above("n", "integer", 128, 10**6)),
        ("n", 1.5, wrong_type("n", "an integer", "a decimal")),
        ("max_tokens", 0, below("max_tokens", "integer", 1, 0)),
        ("max_tokens", -1, below("max_tokens", "integer", 1, -1)),
        ("max_tokens", 2**40, above("max_tokens", "integer", 2**31 - 1, 2**40)),
        ("max_completion_tokens", 0, below("max_completion_tokens", "integer", 1, 0)),
        ("seed", 2**63, above("seed", "integer", 2**63 - 1, 2**63)),
        ("seed", "7", wrong_type("seed", "an integer", "a string")),
        ("stream", "yes", wrong_type("stream", "a boolean", "a string")),
        ("stop", 5, wrong_type("stop", "a string or an array", "an integer")),
        ("logprobs", 1, wrong_type("logprobs", "a boolean", "an integer")),
        ("logit_bias", [], wrong_type("logit_bias", "an object", "an array")),
        ("messages", "hi", wrong_type("messages", "an array", "a string")),
        ("messages", {}, wrong_type("messages", "an array", "an object")),
        ("user", 5, wrong_type("user", "a string", "an integer")),
        ("model", 5, wrong_type("model", "a string", "an integer")),
    ],
)
@pytest.mark.fault(16)
async def test_a_value_out_of_range_or_type_is_refused_in_openais_words(
    api: Api, name: str, given: Any, refusal: tuple[str, str]
) -> None:
    """Status 400, the parameter, a code and a message with limit and value."""
    response = await api.complete(await api.headers(), **{name: given})
    assert response.status_code == 400
    code, message = refusal
    check_error(response.json(), type="invalid_request_error", code=code, param=name)
    assert message == response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value", "20"),
        ({"top_logprobs": 2}, None, "invalid_value", "'logprobs' is true"),
        ({"stream_options": {}}, None, "invalid_value", "'stream' is true"),
        (
            {"stream": True, "stream_options": {"x": 1}},
            "stream_options.x",
            "unknown_parameter",
            "stream_options.x",
        ),
        ({"max_tokens": 1, "max_completion_tokens": 2}, None, "invalid_value", "differ"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length", "length 4"),
        ({"stop": ["a"] * 10_000}, "stop", "array_above_max_length", "length 10000"),
        ({"stop": []}, "stop", "array_below_min_length", "length 0"),
        ({"stop": ""}, "stop", "string_below_min_length", "length 0"),
        ({"stop": ["a", ""]}, "stop[1]", "string_below_min_length", "length 0"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value", "'x'"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value", "'-1'"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value", "101"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value", "999999"),
        ({"tools": [FUNCTION] * 129}, "tools", "array_above_max_length", "129"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value", "'custom'"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "invalid_value",
            "pattern",
        ),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value", "'any'"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type", "a string"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "'xml'"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
            "'response_format.json_schema'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
            "invalid_value",
            "pattern",
        ),
        ({"modalities": ["audio"]}, "modalities[0]", "invalid_value", "'audio'"),
        ({"functions": []}, "functions", "unsupported_parameter", "functions"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter", "supported"),
        ({"verbosity": "high"}, "verbosity", "invalid_value", "medium"),
        ({"top_k": -1}, "top_k", "integer_below_min_value", ">= 0"),
        ({"min_p": 1.5}, "min_p", "decimal_above_max_value", "<= 1"),
        ({"chat_template": "{{ x }}"}, "chat_template", "unknown_parameter", "chat_template"),
        (
            {"chat_template_kwargs": {"tokenize": False}},
            "chat_template_kwargs",
            "unknown_parameter",
            "chat_template_kwargs",
        ),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs", "unknown_parameter", "kwargs"),
        ({"guided_json": {}}, "guided_json", "unknown_parameter", "'guided_json'."),
        ({"maxTokens": 5}, "maxTokens", "unknown_parameter", "Did you mean 'max_tokens'?"),
        ({"min_tokens": 5}, "min_tokens", "unknown_parameter", "'min_tokens'."),
        ({"functio": {}}, "functio", "unknown_parameter", "'functio'."),
        ({"messages": ..., "mesages": []}, "mesages", "unknown_parameter", "mean 'messages'?"),
        ({"messages": [5], "messages[0]": 1}, "messages[0]", "invalid_type", "integer instead."),
        ({"max_output_tokens": 5}, "max_output_tokens", "unknown_parameter", "'max_completion_"),
        ({"messages": ..., "input": "x"}, "input", "unknown_parameter", "mean 'messages'?"),
        ({"a" * 5000: 1}, "a" * 197 + "...", "unknown_parameter", "..."),
        ({"model": ...}, "model", "missing_required_parameter", "'model'"),
        ({"messages": ...}, "messages", "missing_required_parameter", "'messages'"),
        ({"messages": []}, "messages", "array_below_min_length", "length 0"),
        ({"messages": [5]}, "messages[0]", "invalid_type", "an integer"),
        (
            {"messages": [{"role": "wizard", "content": "x"}]},
            "messages[0].role",
            "invalid_value",
            "'wizard'",
        ),
        (
            {"messages": [{"content": "x"}]},
            "messages[0].role",
            "missing_required_parameter",
            "'messages[0].role'",
        ),
        (
            {"messages": [*HELLO, {"role": "user"}]},
            "messages[1].content",
            "missing_required_parameter",
            "'messages[1].content'",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages[0].content",
            "invalid_type",
            "null",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
            "'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "cache": 1}]},
            "messages[0].cache",
            "unknown_parameter",
            "messages[0].cache",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages[0]", "invalid_value", "'content'"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].tool_call_id",
            "missing_required_parameter",
            "tool_call_id",
        ),
        (
            {"metadata": {str(number): "" for number in range(17)}},
            "metadata",
            "array_above_max_length",
            "17",
        ),
        ({"metadata": {"a": "b" * 513}}, "metadata.a", "string_above_max_length", "513"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type", "a string"),
    ],
)
@pytest.mark.fault(16)
async def test_a_field_that_cannot_be_served_is_refused_by_name(
    api: Api, fields: dict[str, Any], param: str | None, code: str, words: str
) -> None:
    """What is unknown, unsupported or contradictory is never ignored."""
    response = await api.complete(await api.headers(), **fields)
    assert response.status_code == 400, response.text
    check_error(response.json(), type="invalid_request_error", code=code, param=param)
    assert words in response.json()["error"]["message"]


DEEP = '{"model": "m", "messages": [], "tools": ' + "[" * 100_000
BODIES = {
    "empty": b"",
    "cut off": b'{"model": "m"',
    "array": b"[]",
    "null": b"null",
    "text": b'"x"',
    "invalid UTF-8": b'{"model": "\xff\xfe"}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "NaN": json.dumps(chat_body(temperature=math.nan)).encode(),
    "Infinity": json.dumps(chat_body(temperature=math.inf)).encode(),
    "minus Infinity": json.dumps(chat_body(logit_bias={"1": -math.inf})).encode(),
    "number above all": json.dumps(chat_body())
    .replace('"temperature": 0', '"temperature": 1e999')
    .encode(),
    "5,000 digits": json.dumps(chat_body(seed=0))
    .replace('"seed": 0', '"seed": ' + "1" * 5000)
    .encode(),
    "20 digits": json.dumps(chat_body(seed=10**20)).encode(),
    "depth": DEEP.encode()[: MAX_BODY_BYTES - 1],
    "depth that parses": json.dumps(
        chat_body(tools=[{"type": "function", "function": {"name": "f", "parameters": 0}}])
    )
    .replace('"parameters": 0', '"parameters": ' + '{"a":' * 900 + "0" + "}" * 900)
    .encode(),
    "many unknown fields": json.dumps({str(number): 0 for number in range(5000)}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.fault(15, 16)
async def test_a_body_that_is_no_such_request_is_a_400(api: Api, name: str, path: str) -> None:
    """The envelope, and never a 500 or a 422."""
    response = await api.client.post(
        path,
        headers={**await api.headers(), "Content-Type": "application/json"},
        content=BODIES[name],
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert len(response.text) < 1000


@pytest.mark.parametrize("declared", ["text/plain", "multipart/form-data", "application/xml", ""])
async def test_a_body_of_another_type_is_a_415(api: Api, declared: str) -> None:
    """The error says which header to send."""
    response = await api.client.post(
        "/v1/chat/completions",
        headers={**await api.headers(), "Content-Type": declared},
        content=json.dumps(chat_body()),
    )
    assert response.status_code == 415
    check_error(
        response.json(), type="invalid_request_error", code="unsupported_media_type", param=None
    )


@pytest.mark.parametrize("declared", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_may_be_declared_in_its_variants(api: Api, declared: str) -> None:
    """A charset and capitals are fine."""
    response = await api.client.post(
        "/v1/chat/completions",
        headers={**await api.headers(), "Content-Type": declared},
        content=json.dumps(chat_body()),
    )
    assert response.status_code == 200


async def test_a_declared_body_above_the_limit_is_not_read(api: Api) -> None:
    """413 by the header alone."""
    headers = {**await api.headers(), "Content-Length": str(MAX_BODY_BYTES + 1)}
    exchange = Exchange(api.app, "/v1/chat/completions", headers, b"{")
    await exchange.run()
    assert exchange.status == 413
    assert exchange.bodies == [b"{"]
    check_error(
        json.loads(exchange.body),
        type="invalid_request_error",
        code="payload_too_large",
        param=None,
    )


@pytest.mark.parametrize("length", ["-1", "x", "1 000", "٣"])
async def test_a_length_that_is_no_number_is_refused(api: Api, length: str) -> None:
    """Before anything is read."""
    exchange = Exchange(api.app, "/v1/chat/completions", await api.headers(), b"{}")
    exchange.scope["headers"].append((b"content-length", length.encode()))
    await exchange.run()
    assert exchange.status == 400


async def test_a_chunked_body_is_refused_at_the_byte_that_is_too_many(api: Api) -> None:
    """What would follow is not asked for."""
    chunks = [b"x" * 10_000] * 100
    exchange = Exchange(api.app, "/v1/chat/completions", await api.headers(), *chunks)
    await exchange.run()
    assert exchange.status == 413
    assert len(exchange.bodies) == 100 - MAX_BODY_BYTES // 10_000 - 1


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v2/chat/completions", 404, "unknown_url"),
        ("GET", "/models", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/embeddings", 405, "method_not_allowed"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_an_unknown_route_or_method_has_the_envelope(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    """The message shows both."""
    response = await api.client.request(method, path, headers=await api.headers())
    assert status == response.status_code
    check_error(response.json(), type="invalid_request_error", code=code, param=None)
    message = response.json()["error"]["message"]
    assert method in message
    assert path in message
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (EmbeddingRequest, {"model": EMBEDDING, "input": [[None] * 50_000] * 10}),
        (EmbeddingRequest, {"model": EMBEDDING, "input": [[]] * 2000}),
        (EmbeddingRequest, {"model": EMBEDDING, "input": [5, *["x"] * 2000]}),
        (ChatRequest, {"model": CHAT, "messages": [0] * 50_000}),
        (ChatRequest, {"model": CHAT, "messages": [{"role": "user", "content": [0] * 50_000}]}),
    ],
)
async def test_the_first_fault_of_a_list_is_reported_and_the_rest_not_looked_for(
    model: type[ChatRequest] | type[EmbeddingRequest],
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hostile body costs one error, not one for each of its millions of elements."""
    counts = []

    def counting(error: Any, *_: object) -> InvalidRequest:
        counts.append(error.error_count())
        return InvalidRequest("x")

    monkeypatch.setattr("omai_ray.api.validation.explain", counting)
    with pytest.raises(InvalidRequest):
        parse_body(json.dumps(body).encode(), model)
    assert counts
    assert counts[0] <= 4
