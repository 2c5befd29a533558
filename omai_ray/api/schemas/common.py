"""Parts that several bodies share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field

# What pydantic calls our error for a union whose deciding field has an unknown value.
UNKNOWN_TAG = "unknown_tag"
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


MAX_ITEMS = 5_000
"""Of a conversation: more would take seconds to check and convert."""
MAX_PARTS = 1_000
"""Of a message: its parts, and its calls."""
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


def form_of_input(value: Any) -> str:
    """Return which of the forms texts or tokens have, by the first: the errors speak of that."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else None
    return "ids" if isinstance(first, int) else "lists" if isinstance(first, list) else "texts"


def as_list(value: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    """Return any of those forms as a list of texts, or of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value[0], int):
        return [value]
    return value


class OneOf(Discriminator):
    """Tells which of several models a value is by a field; expected: its values, for the error."""

    __hash__ = object.__hash__  # unions compare their members, and ours has a dictionary

    def __init__(self, tag: Callable[[Any], Any], *, field: str, expected: str) -> None:
        super().__init__(
            tag,
            custom_error_type=UNKNOWN_TAG,
            custom_error_message=f"unknown {field}",
            custom_error_context={"expected": expected, "field": field},
        )


def type_of(value: Any) -> Any:
    """Return a value's `type`, be it parsed or not."""
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def word_or_type(value: Any) -> Any:
    """Return `word` for a string or null, the `type` of anything else."""
    return "word" if value is None or isinstance(value, str) else type_of(value)


class RequestBody(BaseModel):
    """A request's body, or a part of one: a field that is not known is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Credentials(RequestBody):
    """A login by body; HTTP Basic does as well."""

    username: Annotated[str, Field(min_length=1, max_length=256)]
    password: Annotated[str, Field(min_length=1, max_length=1024, repr=False)]


class LoginSession(BaseModel):
    """A login that succeeded; its cookie is in the response's headers."""

    object: Literal["session"] = "session"
    account: str
    role: Literal["owner", "member", "admin"]
    expires_at: int


class LoggedOut(BaseModel):
    """The session is over."""

    object: Literal["session"] = "session"
    deleted: Literal[True] = True


class Health(BaseModel):
    """What a probe found; models: those that cannot answer."""

    status: Literal["ok", "ready", "loading"]
    models: list[str] | None = None


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ModelCard(BaseModel):
    """One model that the caller may use."""

    id: str
    object: str = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models that the caller may use."""

    object: str = "list"
    data: list[ModelCard]
