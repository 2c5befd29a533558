"""What a request says of the form of its answer, as a grammar: response_format, tool_choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from omai_ray.api.schemas.chat import (
    AllowedToolsChoice,
    ChatRequest,
    JsonFormat,
    NamedTool,
    SchemaFormat,
    StructuredOutputs,
    Tool,
)
from omai_ray.engines.chat.protocol import Grammar
from omai_ray.errors import InvalidRequest
from omai_ray.text.tokenizer import TextTokenizer
from omai_ray.text.tools import CLOSE, OPEN

# Text in which no call begins, and text that ends where one does. A lexer that had taken the first
# would not go back for a tag that is spelled in it.
_SAID = rf"SAID: /(.|\n)*/ & ~/(.|\n)*{OPEN}(.|\n)*/"
_OPENING = rf"OPENING: /(.|\n)*{OPEN}/ & ~/(.|\n)*{OPEN}(.|\n)+/"


def answer_grammar(body: ChatRequest, tokenizer: TextTokenizer) -> Grammar | None:
    """Return the grammar that an answer must follow, None for free text.

    Raises InvalidRequest for a choice of tools that there are not. That a schema can be compiled is
    found out by the engine.
    """
    several = body.parallel_tool_calls is not False
    must_call, tools = _callable_tools(body)
    if must_call:
        calls = "call+" if several and not isinstance(body.tool_choice, NamedTool) else "call"
        return Grammar("lark", f"start: {calls}\n{_call_rule(tools, tokenizer)}", "tools")
    if body.structured_outputs is not None:
        return _structured(body.structured_outputs)
    schema = _schema(body)
    if schema is not None and tools:
        rules = f"start: answer | call+\nanswer: %json {_written(schema)}\n"
        return Grammar("lark", rules + _call_rule(tools, tokenizer))
    if schema is not None:
        return Grammar("json_schema", _written(schema))
    restricted = len(tools) < len(body.tools or []) and body.tool_choice != "none"
    if restricted or any(tool.function.strict for tool in tools):
        start = "start: said_call* SAID" if several else "start: said_call | SAID"
        has_tag = tokenizer.has_token(OPEN)
        said_call = "SAID call" if has_tag else "OPENING called"
        parts = [start, f"said_call: {said_call}", _SAID, *([] if has_tag else [_OPENING])]
        return Grammar("lark", "\n".join([*parts, _call_rule(tools, tokenizer)]), "tools")
    return None


def _callable_tools(body: ChatRequest) -> tuple[bool, Sequence[Tool]]:
    """Return whether there has to be a call, and the tools that may be called."""
    choice = body.tool_choice
    tools = body.tools or []
    if choice in (None, "auto"):
        return False, tools
    if choice == "none":
        return False, ()
    if not tools:
        raise InvalidRequest(
            "'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice"
        )
    if isinstance(choice, NamedTool):
        return True, _named(tools, [choice])
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        return allowed.mode == "required", _named(tools, allowed.tools)
    return True, tools


def _named(tools: Sequence[Tool], wanted: Sequence[NamedTool]) -> list[Tool]:
    by_name = {tool.function.name: tool for tool in tools}
    for named in wanted:
        if named.function.name not in by_name:
            raise InvalidRequest(
                f"Invalid 'tool_choice': there is no tool named '{named.function.name}' in "
                "'tools'.",
                param="tool_choice",
            )
    return list({named.function.name: by_name[named.function.name] for named in wanted}.values())


def _structured(form: StructuredOutputs) -> Grammar:
    if form.regex is not None:
        return Grammar("regex", form.regex, "structured_outputs")
    choices = " | ".join(json.dumps(choice) for choice in form.choice or [])
    return Grammar("lark", f"start: {choices}", "structured_outputs")


def _schema(body: ChatRequest) -> dict[str, Any] | None:
    if isinstance(body.response_format, JsonFormat):
        return {"type": "object"}
    if isinstance(body.response_format, SchemaFormat):
        return body.response_format.json_schema.schema_ or {"type": "object"}
    return None


def _call_rule(tools: Sequence[Tool], tokenizer: TextTokenizer) -> str:
    """Return the rule `call`, in the convention that `omai_ray.text.tools` reads.

    Where the model has a token of its own for the convention's tags, that is what it writes.
    """
    root = "#" if len(tools) == 1 else "#/anyOf/{}"
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": {
                    "type": "object",
                    **_rooted(
                        tool.function.parameters or {},
                        f"{root.format(position)}/properties/arguments",
                    ),
                },
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for position, tool in enumerate(tools)
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    opens, closes = (tag if tokenizer.has_token(tag) else f'"{tag}"' for tag in (OPEN, CLOSE))
    called = rf"/\n?/ body /\n?/ {closes} /\n?/"
    return f"call: {opens} called\ncalled: {called}\nbody: %json {_written(schema)}"


def _rooted(schema: Any, root: str) -> Any:
    """Return a schema whose references to its own root (`#/$defs/…`) hold where it is put."""
    if isinstance(schema, list):
        return [_rooted(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _rooted(value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _written(schema: dict[str, Any]) -> str:
    """Return a schema as text. A model at a loss would go on with spaces where many are allowed."""
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": " ?"}})
