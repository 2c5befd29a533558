"""Files, as they travel."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from omai_ray.api.schemas.administration import Query
from omai_ray.api.schemas.common import RequestBody
from omai_ray.files import MAX_LIFE_S, MAX_PAGE, MIN_LIFE_S
from omai_ray.store import File, Purpose

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"


class FileFields(RequestBody):
    """What a form says beside the file. Seconds: from when the upload began."""

    purpose: Literal["batch", "user_data"]
    anchor: Annotated[Literal["created_at"] | SkipJsonSchema[None], Field(alias=_ANCHOR)] = None
    seconds: Annotated[
        Annotated[int, Field(ge=MIN_LIFE_S, le=MAX_LIFE_S)] | SkipJsonSchema[None],
        Field(alias=_SECONDS),
    ] = None

    @model_validator(mode="after")
    def _both_or_none(self) -> FileFields:
        if (self.anchor is None) != (self.seconds is None):
            raise ValueError(f"give both '{_ANCHOR}' and '{_SECONDS}', or neither")
        return self


class CreateFile(FileFields):
    """The whole form."""

    file: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]


class ListFilesQuery(Query):
    """A page. after: the id of the last file seen."""

    after: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class FileObject(BaseModel):
    """A file. status: always processed; it is here for older clients."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: Annotated[
        int | SkipJsonSchema[None], Field(exclude_if=lambda value: value is None)
    ] = None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: File) -> FileObject:
        """Return a file as it travels."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created),
            expires_at=None if file.expires is None else int(file.expires),
            filename=file.filename,
            purpose=file.purpose,
        )


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """The file is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
