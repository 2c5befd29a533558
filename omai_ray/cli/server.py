"""Asking a running server over HTTP, with an account's key."""

from __future__ import annotations

import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlencode

from omai_ray.errors import ConfigError
from omai_ray.settings import server_access

TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20


class _Answer(dict[str, Any]):
    """An object of the API's; one that lacks what it must have is of another server."""

    def __missing__(self, key: str) -> Any:
        raise ConfigError(
            f"the server answers without '{key}', as the API never does; OMAI_BASE_URL names it"
        )


class Server:
    """The server that OMAI_BASE_URL names. Every method raises ConfigError where it refuses."""

    def __init__(self) -> None:
        self._base_url, self._key = server_access()

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """Return the JSON of a path."""
        given = {name: value for name, value in query.items() if value is not None}
        suffix = f"?{urlencode(given)}" if given else ""
        with self._open("GET", f"{path}{suffix}") as response:
            return self._object(response)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON that a path answers a body with."""
        data = None if body is None else json.dumps(body).encode()
        with self._open("POST", path, data, {"Content-Type": "application/json"}) as response:
            return self._object(response)

    def upload(self, file: Path, purpose: str) -> dict[str, Any]:
        """Upload a file, read a chunk at a time; return what the server says of it."""
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="{_plain(file.name)}"\r\n\r\n'
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        with _opened(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            headers = {
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(len(head) + size + len(tail)),
            }
            with self._open("POST", "/files", _form(head, stream, tail), headers) as response:
                return self._object(response)

    def content(self, file: str) -> Iterator[bytes]:
        """Yield a file's content, a chunk at a time; raise ConfigError where it ends too early."""
        received = 0
        with self._open("GET", f"/files/{file}/content") as response:
            wanted = response.length
            while data := _read(response, file, _CHUNK_BYTES):
                received += len(data)
                yield data
        if wanted is not None and received < wanted:
            raise ConfigError(
                f"{file}: the connection ended after {received} of {wanted} bytes; please try again"
            )

    def _open(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> HTTPResponse:
        url = f"{self._base_url.rstrip('/')}{path}"
        sent = {**(headers or {}), "Authorization": f"Bearer {self._key}"}
        try:
            request = urllib.request.Request(url, body, sent, method=method)  # noqa: S310 - theirs
            opened = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                raise ConfigError(_message(error)) from None
        except (OSError, HTTPException, ValueError) as error:
            raise ConfigError(
                f"{self._base_url} cannot be reached: {reason(error)}; OMAI_BASE_URL names the "
                "server"
            ) from None
        return cast("HTTPResponse", opened)

    def _object(self, response: HTTPResponse) -> dict[str, Any]:
        try:
            value = json.loads(_read(response, self._base_url, None), object_hook=_Answer)
        except ValueError:
            value = None
        if not isinstance(value, _Answer):
            raise ConfigError(
                f"{self._base_url} answers with no object of JSON; OMAI_BASE_URL names the server"
            )
        return value


def reason(error: Exception) -> str:
    """Return why something was not to be had over HTTP, in one line."""
    told = getattr(error, "reason", error)
    return " ".join(str(told).split()) or type(told).__name__


def _read(response: HTTPResponse, place: str, most: int | None) -> bytes:
    try:
        return response.read(most)
    except (OSError, HTTPException) as error:
        raise ConfigError(
            f"{place}: the connection broke off: {reason(error)}; please try again"
        ) from None


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _form(head: bytes, stream: BinaryIO, tail: bytes) -> Iterator[bytes]:
    yield head
    while data := stream.read(_CHUNK_BYTES):
        yield data
    yield tail


def _plain(name: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else "_" for c in name)


def _message(error: urllib.error.HTTPError) -> str:
    """Return what the server says, or the status where that is not in its envelope."""
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, LookupError, TypeError, OSError, HTTPException):
        return f"{error.url}: HTTP {error.code}"
