"""The session cookie on the wire."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAME = "omai_session"
_VALUE = re.compile(rb"[A-Za-z0-9_-]{43}")


def read_session(cookies: Iterable[bytes]) -> str | None:
    """Return the session's value out of Cookie headers, None where there is none in its form."""
    for header in cookies:
        for pair in header.split(b";"):
            name, _, value = pair.strip().partition(b"=")
            if name == NAME.encode() and _VALUE.fullmatch(value):
                return value.decode("ascii")
    return None


def set_cookie(value: str, max_age_s: float, secure: bool) -> str:
    """Return a Set-Cookie header's value. secure: the request came by TLS, the cookie must too."""
    parts = [f"{NAME}={value}", "Path=/", f"Max-Age={int(max_age_s)}", "HttpOnly", "SameSite=Lax"]
    return "; ".join([*parts, "Secure"] if secure else parts)


def clear_cookie(secure: bool) -> str:
    """Return the Set-Cookie header's value that makes a client forget its session."""
    return set_cookie("", 0, secure)
