"""POST /v1/responses, without state: what a conversation was comes with each request.

A field is honoured, or accepted because leaving it out of account cannot change the answer, or
refused by name: what needs the server to remember (`previous_response_id`, `conversation`) among
them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, Tag, model_validator

from omai_ray.api.schemas.chat import FunctionDefinition, JsonFormat, JsonSchema, TextFormat
from omai_ray.api.schemas.common import (
    MAX_ITEMS,
    MAX_PARTS,
    Metadata,
    ModelName,
    OneOf,
    RequestBody,
    type_of,
    word_or_type,
)

_Status = Literal["in_progress", "completed", "incomplete"] | None
_LOGPROBS = "message.output_text.logprobs"


class InputText(RequestBody):
    """A piece of what the model is told."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class OutputText(RequestBody):
    """A piece of an earlier answer, as it came."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


_Part = Annotated[
    Annotated[InputText, Tag("input_text")] | Annotated[OutputText, Tag("output_text")],
    OneOf(type_of, field="type", expected="'input_text' and 'output_text'"),
]
_Parts = Annotated[list[_Part], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


def _joined(content: str | _Parts) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class MessageItem(RequestBody):
    """A message of the conversation, an earlier answer as it came among them."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | _Parts
    id: str | None = None
    status: _Status = None
    phase: Literal["commentary", "final_answer"] | None = None

    @property
    def text(self) -> str:
        """The message's text."""
        return _joined(self.content)


class FunctionCallItem(RequestBody):
    """A call that the model asked for."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: _Status = None
    namespace: None = None
    caller: None = None


class FunctionOutputItem(RequestBody):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=64)]
    output: str | _Parts
    id: str | None = None
    status: _Status = None
    name: str | None = None
    namespace: None = None
    caller: None = None

    @property
    def text(self) -> str:
        """The output as text."""
        return _joined(self.output)


def _kind_of_item(value: Any) -> Any:
    return type_of(value) or "message"


_Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    OneOf(
        _kind_of_item,
        field="type",
        expected="'message', 'function_call' and 'function_call_output'",
    ),
]


class ResponseTool(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]


_Tool = Annotated[
    Annotated[ResponseTool, Tag("function")], OneOf(type_of, field="type", expected="'function'")
]


class NamedFunction(RequestBody):
    """One of the tools."""

    type: Literal["function"]
    name: str


class AllowedFunctions(RequestBody):
    """The tools that may (`auto`), or one of which has to (`required`), be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1, max_length=128, fail_fast=True)]


class ResponseSchemaFormat(JsonSchema):
    """JSON that a schema describes, which has to be there."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class TextSettings(RequestBody):
    """The form of the answer's text."""

    format: (
        Annotated[
            Annotated[TextFormat, Tag("text")]
            | Annotated[JsonFormat, Tag("json_object")]
            | Annotated[ResponseSchemaFormat, Tag("json_schema")],
            OneOf(type_of, field="type", expected="'text', 'json_object' and 'json_schema'"),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class Obfuscation(RequestBody):
    """include_obfuscation is padding, and may be left out."""

    include_obfuscation: bool | None = None


class ResponseRequest(RequestBody):
    """What to answer: a text, or the items of a conversation, with room for the instructions."""

    model: ModelName
    input: (
        str | Annotated[list[_Item], Field(min_length=1, max_length=MAX_ITEMS - 1, fail_fast=True)]
    )
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=16, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[_Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Annotated[
        Annotated[Literal["none", "auto", "required"] | None, Tag("word")]
        | Annotated[NamedFunction, Tag("function")]
        | Annotated[AllowedFunctions, Tag("allowed_tools")],
        OneOf(word_or_type, field="type", expected="'function' and 'allowed_tools'"),
    ] = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    stream: bool | None = None
    stream_options: Obfuscation | None = None
    include: (
        Annotated[
            list[
                Literal[
                    "message.output_text.logprobs",
                    "reasoning.encrypted_content",
                    "file_search_call.results",
                    "web_search_call.results",
                    "web_search_call.action.sources",
                    "message.input_image.image_url",
                    "computer_call_output.output.image_url",
                    "code_interpreter_call.outputs",
                ]
            ],
            Field(max_length=32, fail_fast=True),
        ]
        | None
    ) = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None

    metadata: Metadata | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None

    context_management: None = None
    conversation: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    reasoning: None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("The 'stream_options' parameter is only allowed when 'stream' is true")
        return self

    @property
    def logprobs(self) -> bool:
        """Whether the answer comes with its tokens' probabilities."""
        return self.top_logprobs is not None or _LOGPROBS in (self.include or [])


class InputDetails(BaseModel):
    """cached_tokens: those that had not to be computed."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """Tokens that are not shown."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer ended early."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(BaseModel):
    """Why there is no answer."""

    code: str
    message: str


class ResponseObject(BaseModel):
    """The answer, with the settings that made it."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None = None
    metadata: dict[str, str]
