"""POST /v1/chat/completions.

A field is honoured, or accepted because leaving it out of account cannot change the answer
(`user`, `metadata`, `store` and the like), or refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, Tag, model_validator

from omai_ray.api.schemas.common import (
    MAX_ITEMS,
    MAX_PARTS,
    Metadata,
    ModelName,
    OneOf,
    RequestBody,
    word_or_type,
)
from omai_ray.api.schemas.sampling import SamplingFields, Usage


class TextPart(RequestBody):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


Content = (
    Annotated[str, Field()]
    | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
)


class SystemMessage(RequestBody):
    """What the model is told before the conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(RequestBody):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class FunctionCall(RequestBody):
    """A function's name, and its arguments as JSON text.

    parsed_arguments: what OpenAI's own client adds to an answer that it parsed.
    """

    name: str
    arguments: str
    parsed_arguments: Annotated[Any, Field(exclude=True)] = None


class ToolCallPart(RequestBody):
    """A call that the assistant made."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None


class AssistantMessage(RequestBody):
    """What the model said earlier; its answers may be sent back as they came.

    parsed: what OpenAI's own client adds to an answer that it parsed.
    """

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    tool_calls: (
        Annotated[list[ToolCallPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None
    ) = None
    audio: None = None
    function_call: None = None
    parsed: Annotated[Any, Field(exclude=True)] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls and self.refusal is None:
            raise ValueError("an assistant message needs 'content' or 'tool_calls'")
        return self


class ToolMessage(RequestBody):
    """What a called function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


def _role(value: Any) -> Any:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return "system" if role == "developer" else role


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("system")]
    | Annotated[UserMessage, Tag("user")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[ToolMessage, Tag("tool")],
    OneOf(_role, field="role", expected="'system', 'developer', 'user', 'assistant' and 'tool'"),
]


class FunctionDefinition(RequestBody):
    """A function that the model may call; parameters is a JSON Schema."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestBody):
    """Something the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class TextFormat(RequestBody):
    """Plain text, the default."""

    type: Literal["text"]


class JsonFormat(RequestBody):
    """A JSON object, whatever is in it."""

    type: Literal["json_object"]


class JsonSchema(RequestBody):
    """A JSON Schema by name. It is always followed, `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class SchemaFormat(RequestBody):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[JsonFormat, Tag("json_object")]
    | Annotated[SchemaFormat, Tag("json_schema")]
    | Annotated[None, Tag("word")],
    OneOf(word_or_type, field="type", expected="'text', 'json_object' and 'json_schema'"),
]


class ToolName(RequestBody):
    """A tool's name."""

    name: str


class NamedTool(RequestBody):
    """One of the tools."""

    type: Literal["function"]
    function: ToolName


class AllowedTools(RequestBody):
    """The tools that may (`auto`), or one of which has to (`required`), be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128, fail_fast=True)]


class AllowedToolsChoice(RequestBody):
    """Some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"] | None, Tag("word")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
    OneOf(word_or_type, field="type", expected="'function' and 'allowed_tools'"),
]


class StructuredOutputs(RequestBody):
    """A form that OpenAI has no name for: text that matches a regular expression, or a choice."""

    regex: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1024)]],
            Field(min_length=1, max_length=256),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.regex is None) == (self.choice is None):
            raise ValueError("give either 'regex' or 'choice'")
        return self


class ChatRequest(SamplingFields):
    """Messages to answer."""

    model: ModelName
    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    ]
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat = None
    structured_outputs: StructuredOutputs | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    verbosity: Literal["medium"] | None = None

    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None

    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    reasoning_effort: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("The 'top_logprobs' parameter is only allowed when 'logprobs' is true")
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError(
                "The parameters 'max_tokens' and 'max_completion_tokens' are one setting and differ"
            )
        if self.structured_outputs is not None and self.response_format is not None:
            raise ValueError(
                "The parameters 'structured_outputs' and 'response_format' exclude each other"
            )
        return self

    @property
    def completion_limit(self) -> int | None:
        """The most tokens an answer may have, where the request says."""
        return self.max_completion_tokens or self.max_tokens


class AnswerFunction(BaseModel):
    """The function to call."""

    name: str
    arguments: str


class AnswerToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: str = "function"
    function: AnswerFunction


class Answer(BaseModel):
    """The assistant's message."""

    role: str = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: list[AnswerToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer, and why it ended."""

    index: int
    message: Answer
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatResponse(BaseModel):
    """The answers."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
