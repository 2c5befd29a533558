"""POST /v1/responses: a response's items are a chat's messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import permitted
from omai_ray.api.backends import ServedModels
from omai_ray.api.chat import chat_job
from omai_ray.api.generation import TextService
from omai_ray.api.response_form import ResponseForm
from omai_ray.api.schemas import chat
from omai_ray.api.schemas.responses import (
    AllowedFunctions,
    FunctionCallItem,
    FunctionOutputItem,
    MessageItem,
    NamedFunction,
    ResponseRequest,
    ResponseSchemaFormat,
    ResponseTool,
)
from omai_ray.api.validation import read_body
from omai_ray.errors import InvalidRequest

_NAMES = {"messages": "input", "response_format": "text.format"}


class ResponsesEndpoint:
    """Serves responses."""

    def __init__(self, models: ServedModels, service: TextService) -> None:
        self._models = models
        self._service = service

    async def create(self, request: Request) -> Response:
        """Answer one request, whole or as a stream."""
        body = await read_body(request, ResponseRequest)
        served = permitted(request, body.model, self._models.chat(body.model))
        with _in_terms_of_responses():
            job = await chat_job(request, served, as_chat(body))
            if job.grammar is not None:
                param = _NAMES.get(job.grammar.param, job.grammar.param)
                job = replace(job, grammar=replace(job.grammar, param=param))
            return await self._service.answer(
                request,
                served,
                [job],
                ResponseForm(served.spec.name, body),
                stream=bool(body.stream),
                typical_tokens=body.max_output_tokens,
            )


@contextmanager
def _in_terms_of_responses() -> Iterator[None]:
    """Give a chat's errors the names that their fields have here."""
    try:
        yield
    except InvalidRequest as error:
        name = _NAMES.get(error.param or "")
        if name is None:
            raise
        message = error.message.replace(error.param or "", name)
        raise type(error)(message, param=name, code=error.code) from None


def as_chat(body: ResponseRequest) -> chat.ChatRequest:
    """Return the chat request that means the same."""
    messages: list[Any] = []
    if body.instructions is not None:
        messages.append(chat.SystemMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        messages.append(chat.UserMessage(role="user", content=body.input))
    else:
        messages += _messages(body.input)
    return chat.ChatRequest(
        model=body.model,
        messages=messages,
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_output_tokens,
        logprobs=True if body.logprobs else None,
        top_logprobs=body.top_logprobs,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body),
        prompt_cache_key=body.prompt_cache_key,
    )


def _messages(items: list[Any]) -> list[Any]:
    """Return items as messages: calls in a row belong to the assistant's message before them."""
    messages: list[Any] = []
    for kind, group in groupby(items, key=type):
        if kind is FunctionCallItem:
            said = None
            if messages and isinstance(messages[-1], chat.AssistantMessage):
                said = messages.pop().content
            calls = [_call(item) for item in group]
            # Not checked again: the items were, and there may be many.
            messages.append(
                chat.AssistantMessage.model_construct(
                    role="assistant", content=said, tool_calls=calls
                )
            )
        elif kind is FunctionOutputItem:
            messages += [
                chat.ToolMessage(role="tool", content=item.text, tool_call_id=item.call_id)
                for item in group
            ]
        else:
            messages += map(_message, group)
    return messages


def _call(item: FunctionCallItem) -> chat.ToolCallPart:
    function = chat.FunctionCall(name=item.name, arguments=item.arguments)
    return chat.ToolCallPart(id=item.call_id, type="function", function=function)


def _message(item: MessageItem) -> Any:
    if item.role == "assistant":
        return chat.AssistantMessage(role="assistant", content=item.text)
    if item.role == "user":
        return chat.UserMessage(role="user", content=item.text)
    return chat.SystemMessage(role="system", content=item.text)


def _tool(tool: ResponseTool) -> chat.Tool:
    function = chat.FunctionDefinition(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return chat.Tool(type="function", function=function)


def _named(function: NamedFunction) -> chat.NamedTool:
    return chat.NamedTool(type="function", function=chat.ToolName(name=function.name))


def _choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice
    if isinstance(choice, NamedFunction):
        return _named(choice)
    if isinstance(choice, AllowedFunctions):
        allowed = chat.AllowedTools(mode=choice.mode, tools=[_named(tool) for tool in choice.tools])
        return chat.AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _format(body: ResponseRequest) -> Any:
    wanted = body.text.format if body.text else None
    if isinstance(wanted, ResponseSchemaFormat):
        schema = chat.JsonSchema.model_validate({"name": wanted.name, "schema": wanted.schema_})
        return chat.SchemaFormat(type="json_schema", json_schema=schema)
    return wanted
