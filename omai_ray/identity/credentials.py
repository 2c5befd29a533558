"""Reading credentials from headers: all that is refused here costs neither a query nor a hash."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field

from omai_ray.errors import Unauthorized
from omai_ray.identity.cookies import read_session
from omai_ray.identity.keys import redact

MAX_BYTES = 4096
Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""

MISSING = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or log in with your username and "
    "password."
)


@dataclass(frozen=True, slots=True)
class Bearer:
    """A key as it was sent."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Basic:
    """A username and password as they were sent."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Presented:
    """All that a request says about its caller; session: what its cookie holds."""

    session: str | None
    authorization: Bearer | Basic | None


def read_credentials(headers: Headers) -> Presented:
    """Return the credentials; raise Unauthorized for ambiguous, over-long or unknown ones."""
    authorizations: list[bytes] = []
    cookies: list[bytes] = []
    for name, value in headers:
        if name not in (b"authorization", b"cookie"):
            continue
        if len(value) > MAX_BYTES:
            raise unauthorized(f"The {name.decode()} header is longer than {MAX_BYTES} bytes.")
        (authorizations if name == b"authorization" else cookies).append(value)
    if len(authorizations) > 1:
        raise unauthorized("The request has more than one Authorization header.")
    authorization = _authorization(authorizations[0]) if authorizations else None
    return Presented(read_session(cookies), authorization)


def unauthorized(message: str) -> Unauthorized:
    """Return the error, with the header that says what is asked for."""
    return Unauthorized(message, headers={"WWW-Authenticate": "Bearer"})


def incorrect_key(token: str) -> Unauthorized:
    """Return the error for a key that is not one, without showing it."""
    shown = redact(token)
    return unauthorized(f"Incorrect API key provided: {shown}" if shown else _INCORRECT)


_INCORRECT = "Incorrect API key provided."


def _authorization(value: bytes) -> Bearer | Basic | None:
    scheme, _, rest = value.strip().partition(b" ")
    rest = rest.strip()
    match scheme.lower():
        case b"":
            return None
        case b"bearer" if rest:
            return Bearer(rest.decode("latin-1"))
        case b"bearer":
            raise unauthorized(MISSING)
        case b"basic":
            return _basic(rest)
    raise unauthorized("The Authorization header must be 'Bearer YOUR_KEY' or Basic.")


def _basic(value: bytes) -> Bearer | Basic:
    try:
        decoded = base64.b64decode(value, validate=True)
    except binascii.Error:
        raise unauthorized("The Authorization header's Basic credentials are not base64.") from None
    username, colon, password = _text(decoded).partition(":")
    if not colon:
        raise unauthorized("The Authorization header's Basic credentials have no password.")
    # What browsers send where a key is entered as the password, and `curl -u KEY:` as the user.
    if not username or not password:
        return Bearer(username or password)
    return Basic(username, password)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")  # what Python's requests encodes with
