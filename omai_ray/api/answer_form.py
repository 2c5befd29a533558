"""What a request says of the form of its answer, as a grammar: response_format, tool_choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from omai_ray.api.schemas.chat import ChatRequest, JsonFormat, NamedTool, SchemaFormat, Tool
from omai_ray.engines.chat.protocol import Grammar
from omai_ray.errors import InvalidRequest


def answer_grammar(body: ChatRequest) -> Grammar | None:
    """Return the grammar that an answer must follow, None for free text.

    Raises InvalidRequest for a choice of tools that there are not. That a schema can be compiled is
    found out by the engine.
    """
    forced = _forced_tools(body)
    if forced:
        calls = "call" if body.parallel_tool_calls is False else "call+"
        return Grammar("lark", f"start: {calls}\n{_call_rule(forced)}", "tools")
    schema = _schema(body)
    if schema is None:
        return None
    if body.tools and body.tool_choice != "none":
        rules = f"start: answer | call+\nanswer: %json {_written(schema)}\n"
        return Grammar("lark", rules + _call_rule(body.tools))
    return Grammar("json_schema", _written(schema))


def _forced_tools(body: ChatRequest) -> Sequence[Tool]:
    """Return the tools of which one has to be called."""
    choice = body.tool_choice
    if choice is None or choice in ("none", "auto"):
        return ()
    tools = body.tools or []
    if not tools:
        raise InvalidRequest(
            "'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice"
        )
    if not isinstance(choice, NamedTool):
        return tools
    named = [tool for tool in tools if tool.function.name == choice.function.name]
    if not named:
        raise InvalidRequest(
            f"Invalid 'tool_choice': there is no tool named '{choice.function.name}' in 'tools'.",
            param="tool_choice",
        )
    return named


def _schema(body: ChatRequest) -> dict[str, Any] | None:
    if isinstance(body.response_format, JsonFormat):
        return {"type": "object"}
    if isinstance(body.response_format, SchemaFormat):
        return body.response_format.json_schema.schema_ or {"type": "object"}
    return None


def _call_rule(tools: Sequence[Tool]) -> str:
    """Return the rule `call`, in the convention that `omai_ray.text.tools` reads."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": {"type": "object", **(tool.function.parameters or {})},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    call = '"<tool_call>" /\\n?/ body /\\n?/ "</tool_call>" /\\n?/'
    return f"call: {call}\nbody: %json {_written(schema)}"


def _written(schema: dict[str, Any]) -> str:
    """Return a schema as text. A model at a loss would go on with spaces where many are allowed."""
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": " ?"}})
