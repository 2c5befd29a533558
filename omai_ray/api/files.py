"""/v1/files: what the caller's account uploads, and what its batches leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from omai_ray.api import openapi
from omai_ray.api.accounting import own_of, principal_of
from omai_ray.api.multipart import Part, read_parts
from omai_ray.api.records import frame
from omai_ray.api.render import ObjectResponse
from omai_ray.api.schemas import files as schemas
from omai_ray.api.validation import parse_texts, read_query
from omai_ray.errors import InvalidRequest, PayloadTooLarge, RangeNotSatisfiable
from omai_ray.files import MAX_LIFE_S, Content, Files, Upload
from omai_ray.quota.tiers import tier_of
from omai_ray.settings import FileSettings, Tier
from omai_ray.store import File

_FIELD_BYTES = 1024
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.ASCII)
_FALLBACK = re.compile(r"[^A-Za-z0-9._ -]")


class FileRoutes:
    """Answers about the files of the caller's account."""

    def __init__(self, files: Files, tiers: Mapping[str, Tier], limits: FileSettings) -> None:
        self._files = files
        self._tiers = tiers
        self._limits = limits

    async def create(self, request: Request) -> Response:
        """Answer POST /v1/files."""
        principal = principal_of(request)
        quota_bytes = tier_of(principal.tier, self._tiers).storage_bytes
        async with self._files.uploading(principal.account_id, quota_bytes) as upload:
            form = _Form(upload, self._limits)
            async for part, data in read_parts(request):
                await form.add(part, data)
            fields, filename = form.finish()
            seconds = fields.seconds
            if seconds is None and fields.purpose == "batch":
                seconds = MAX_LIFE_S
            file = await upload.finish(filename, fields.purpose, seconds)
        return ObjectResponse(schemas.FileObject.of(file))

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/files."""
        query = read_query(request, schemas.ListFilesQuery)
        account_id = principal_of(request).account_id
        page = await self._files.list(account_id, **query.model_dump())
        data = [schemas.FileObject.of(file) for file in page.items]
        ids = [file.id for file in page.items]
        return ObjectResponse(schemas.FileList(data=data, **frame(ids, page.has_more)))

    async def retrieve(self, request: Request) -> Response:
        """Answer GET /v1/files/{file_id}."""
        return ObjectResponse(schemas.FileObject.of(await self._file(request)))

    async def delete(self, request: Request) -> Response:
        """Answer DELETE /v1/files/{file_id}."""
        account_id, file = own_of(request, "file_id")
        await self._files.delete(account_id, file)
        return ObjectResponse(schemas.FileDeleted(id=file))

    async def content(self, request: Request) -> Response:
        """Answer GET /v1/files/{file_id}/content."""
        file = await self._file(request)
        extent = _extent_of(request, file)
        return _Download(file, await self._files.open(file), extent)

    async def head_content(self, request: Request) -> Response:
        """Answer HEAD /v1/files/{file_id}/content, which reads none of it."""
        file = await self._file(request)
        extent = _extent_of(request, file)
        return Response(status_code=extent.status, headers=_headers(file, extent))

    async def _file(self, request: Request) -> File:
        return await self._files.get(*own_of(request, "file_id"))


class _Form:
    """An upload's form as it comes; the file in it is written on."""

    def __init__(self, upload: Upload, limits: FileSettings) -> None:
        self._upload = upload
        self._limits = limits
        self._texts: dict[str, bytes] = {}
        self._filename: str | None = None

    async def add(self, part: Part, data: bytes) -> None:
        """Take the next piece of a part. Raises InvalidRequest, PayloadTooLarge."""
        if part.name == "file":
            if not data:
                self._filename = part.filename or "upload"
                self._check_purpose()
                return
            self._require_size(self._upload.bytes + len(data))
            await self._upload.write(data)
            return
        text = self._texts.get(part.name, b"") + data
        if len(text) > _FIELD_BYTES:
            raise InvalidRequest(
                f"Invalid '{part.name[:80]}': at most {_FIELD_BYTES} bytes are accepted.",
                param=part.name[:80],
            )
        self._texts[part.name] = text
        if len(self._texts) > len(schemas.FileFields.model_fields):
            self._fields()  # which refuses those that are not known

    def finish(self) -> tuple[schemas.FileFields, str]:
        """Return what the form says and the file's name. Raises InvalidRequest."""
        fields = self._fields()
        if self._filename is None:
            raise InvalidRequest(
                "Missing required parameter: 'file'.",
                param="file",
                code="missing_required_parameter",
            )
        self._require_size(self._upload.bytes)
        return fields, self._filename

    def _fields(self) -> schemas.FileFields:
        texts = {name: text.decode(errors="replace") for name, text in self._texts.items()}
        return parse_texts(texts, schemas.FileFields)

    def _check_purpose(self) -> None:
        """Raise for a wrong purpose before the file comes, where it is known by then."""
        if "purpose" in self._texts:
            purpose = self._texts["purpose"].decode(errors="replace")
            parse_texts({"purpose": purpose}, schemas.FileFields)

    def _require_size(self, size: int) -> None:
        """Raise where the file is too large; of a batch that is known once its purpose is."""
        batch = self._texts.get("purpose") == b"batch"
        most = self._limits.max_batch_bytes if batch else self._limits.max_bytes
        if size > most:
            what = "with the purpose 'batch' " if batch else ""
            raise PayloadTooLarge(
                f"The file is too large: a file {what}may have at most {most} bytes.", param="file"
            )


@dataclass(frozen=True, slots=True)
class _Extent:
    """Which bytes of a file are answered with. status: 200 for all of them, 206 for a part."""

    status: int
    start: int
    stop: int
    size: int


class _Download(StreamingResponse):
    """A file's content, or a part of it, let go of whatever becomes of the request."""

    def __init__(self, file: File, content: Content, extent: _Extent) -> None:
        self._content = content
        chunks = content.chunks(extent.start, extent.stop)
        super().__init__(chunks, extent.status, headers=_headers(file, extent))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._content.close()


def _extent_of(request: Request, file: File) -> _Extent:
    """Return what a request's Range asks for (RFC 9110, section 14); several are answered by all.

    Raises RangeNotSatisfiable.
    """
    size, headers = file.bytes, request.headers
    found = _RANGE.fullmatch(headers.get("range", "").strip())
    if found is None or headers.get("if-range", _etag(file)) != _etag(file):
        return _Extent(200, 0, size, size)
    first, last, suffix = found.groups()
    if suffix is not None:
        start, stop = max(size - int(suffix), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):  # no range by its syntax, and so to be ignored
            return _Extent(200, 0, size, size)
    if start >= stop:
        raise RangeNotSatisfiable(
            f"Invalid 'Range': the file has {size} bytes.",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return _Extent(206, start, stop, size)


def _headers(file: File, extent: _Extent) -> dict[str, str]:
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-store",
        "Content-Disposition": _disposition(file.filename),
        "Content-Length": str(extent.stop - extent.start),
        "Content-Type": "application/octet-stream",
        "ETag": _etag(file),
        "X-Content-Type-Options": "nosniff",
    }
    if extent.status == 206:
        headers["Content-Range"] = f"bytes {extent.start}-{extent.stop - 1}/{extent.size}"
    return headers


def _etag(file: File) -> str:
    return f'"{file.id}"'  # its content never changes


def _disposition(filename: str) -> str:
    """Return a header that names a file (RFC 6266): never more than a name."""
    plain = _FALLBACK.sub("_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def add_file_routes(app: FastAPI, routes: FileRoutes) -> None:
    """Add all of them to the application."""
    add = partial(openapi.add_route, app, tag="Files")
    file, root = schemas.FileObject, "/v1/files"
    add("POST", root, routes.create, file, summary="Upload a file",
        form=schemas.CreateFile)  # fmt: skip
    add("GET", root, routes.list, schemas.FileList, summary="List files",
        query=schemas.ListFilesQuery)  # fmt: skip
    add("GET", f"{root}/{{file_id}}", routes.retrieve, file, summary="Retrieve a file")
    add("DELETE", f"{root}/{{file_id}}", routes.delete, schemas.FileDeleted,
        summary="Delete a file")  # fmt: skip
    add("GET", f"{root}/{{file_id}}/content", routes.content, None,
        summary="Download a file's content, or a part of it")  # fmt: skip
    app.add_api_route(
        f"{root}/{{file_id}}/content",
        routes.head_content,
        methods=["HEAD"],
        response_model=None,
        include_in_schema=False,
    )
