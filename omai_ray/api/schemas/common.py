"""Parts that several bodies share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# What pydantic calls our error for a union whose deciding field has an unknown value.
UNKNOWN_TAG = "unknown_tag"
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


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
