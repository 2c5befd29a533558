"""What `schemathesis run` is told of this server: models there are, short answers, our errors."""

# mypy: ignore-errors

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import schemathesis

_CHAT, _EMBEDDING = "omai-gpt-4", "text-embedding-ada-002"
_MODELS = {
    "ChatRequest": _CHAT,
    "CompletionRequest": _CHAT,
    "ResponseRequest": _CHAT,
    "TokenizeRequest": _CHAT,
    "DetokenizeRequest": _CHAT,
    "EmbeddingRequest": _EMBEDDING,
    "RerankRequest": _EMBEDDING,
    "ScoreRequest": _EMBEDDING,
    "CreateChatCompletionRequest": _CHAT,
    "CreateCompletionRequest": _CHAT,
    "CreateResponse": _CHAT,
    "CreateEmbeddingRequest": _EMBEDDING,
}
# Where a request says how long the answer may be, and the least that each endpoint accepts or so.
_LIMITS = {
    "/chat/completions": (("max_completion_tokens", "max_tokens"), 6),
    "/completions": (("max_tokens",), 6),
    "/responses": (("max_output_tokens",), 16),
}
_SLICE = Path(__file__).parents[1] / "openai_slice.json"
_ANSWERS = {
    "/chat/completions": ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    "/completions": ("CreateCompletionResponse", "CreateCompletionResponse"),
    "/responses": ("Response", "ResponseStreamEvent"),
    "/embeddings": ("CreateEmbeddingResponse", ""),
    "/models": ("ListModelsResponse", ""),
    "/models/{model}": ("Model", ""),
}
_ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
_FEW_CHOICES, _CONTEXT = 2, 1100


@schemathesis.hook
def before_load_schema(_: Any, document: dict[str, Any]) -> None:
    """Make most requests ask a model that there is.

    What streams hold is `keeps_openais_schemas`'s affair: OpenAPI 3.1 cannot say it.
    """
    for name, schema in document["components"]["schemas"].items():
        for part in [schema, *schema.get("allOf", [])]:
            if name in _MODELS and "model" in part.get("properties", {}):
                part["properties"]["model"] = {"enum": [_MODELS[name]]}
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation.get("responses", {}).values():
                response.get("content", {}).get("text/event-stream", {}).pop("schema", None)


@schemathesis.hook
def before_call(_: Any, case: Any, **__: Any) -> None:
    """Keep accepted requests short; one that has to be refused stays as it is."""
    body, limit = case.body, _LIMITS.get(case.path.removeprefix("/v1"))
    if not isinstance(body, dict) or limit is None:
        return
    body, (names, few) = dict(body), limit
    given = [name for name in names if body.get(name) is not None]
    if not given:
        body[names[0]] = few
    for name in given:
        if type(body[name]) is int and few < body[name] <= _CONTEXT:
            body[name] = few
    for name in ("n", "best_of"):
        if type(body.get(name)) is int and _FEW_CHOICES < body[name] <= 128:
            body[name] = _FEW_CHOICES
    case.body = body


@schemathesis.check
def keeps_the_envelope(_: Any, response: Any, __: Any) -> None:
    """Every failure is the whole envelope, and every answer has its id."""
    assert response.headers.get("x-request-id"), "no x-request-id"
    if response.status_code < 400:
        return
    error = json.loads(response.content)["error"]
    assert {"message", "type", "param", "code"} == error.keys()
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)


@schemathesis.check
def keeps_openais_schemas(_: Any, response: Any, case: Any) -> None:
    """Each success, and each event of a stream, is one by OpenAI's schemas too."""
    names = _ANSWERS.get(case.path.removeprefix("/v1"))
    if names is None or response.status_code != 200:
        return
    if "text/event-stream" not in str(response.headers["content-type"]):
        _validate(names[0], json.loads(response.content))
        return
    blocks = response.content.decode().split("\n\n")
    assert blocks.pop() == "", "cut in an event"
    *events, last = [block.rpartition("data: ")[2] for block in blocks]
    for event in events:
        _validate(names[1], json.loads(event))
    if last != "[DONE]":
        end = json.loads(last)
        assert "error" in end or end["type"] in _ENDS, last[:200]


def _validate(name: str, value: Any) -> None:
    try:
        _validator(name).validate(value)
    except jsonschema_rs.ValidationError as error:
        raise AssertionError(f"not OpenAI's {name}: {str(error)[:2000]}") from None


@functools.cache
def _validator(name: str) -> Any:
    document = json.loads(_SLICE.read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    # The document leaves out base64, and that a completion's chunk has no finish reason yet.
    completion = schemas["CreateCompletionResponse"]["properties"]["choices"]["items"]
    for properties, name_, kind in (
        (schemas["Embedding"]["properties"], "embedding", "string"),
        (completion["properties"], "finish_reason", "null"),
    ):
        properties[name_] = {"anyOf": [properties[name_], {"type": kind}]}
    document["$ref"] = f"#/components/schemas/{name}"
    return jsonschema_rs.validator_for(document)
