"""Where a client's key, login and base URL come from, and what is refused before any request."""

from __future__ import annotations

import os
import string
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from openai import OpenAIError

if TYPE_CHECKING:
    import httpx2

DEFAULT_BASE_URL = "https://api.omai.ai/v1"
KEY_PREFIX = "omai-sk-"
KEY_LENGTH = 71
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


class CredentialsError(OpenAIError):
    """There are no credentials, or they cannot be right; nothing was sent."""

    __module__ = "omai"


@dataclass(frozen=True)
class Login:
    """Who logs in."""

    username: str
    password: str = field(repr=False)


def find_login(username: str | None, password: str | None, api_key: object) -> Login | None:
    """Return a login where one is given. Raises CredentialsError for half of one, or one too many.

    api_key: what was given as such beside it.
    """
    if username is None and password is None:
        return None
    if api_key is not None:
        raise CredentialsError("Pass api_key=, or username= and password=, but not both.")
    if not username or not password:
        raise CredentialsError("A login needs both username= and password=.")
    return Login(username, password)


def find_key(given: str | None) -> str:
    """Return the key that was given, or OMAI_API_KEY. Raises CredentialsError."""
    return check_key(os.environ.get("OMAI_API_KEY", "") if given is None else given)


def check_key(key: str) -> str:
    """Return a key without the white space around it. Raises CredentialsError, never naming it.

    Only keys of OMAi's own form have a checksum; any other must merely fit into a header.
    """
    key = key.strip()
    if not key:
        raise CredentialsError(
            "Missing credentials: pass api_key=, or username= and password=, or set the "
            "environment variable OMAI_API_KEY."
        )
    if not key.isascii() or not key.isprintable():
        raise CredentialsError("The API key has characters that no key has: is it the right text?")
    if key.startswith(KEY_PREFIX) and not _is_whole(key):
        raise CredentialsError(
            f"The API key is malformed: its checksum does not fit (mistyped, or cut off when "
            f"copied?). Expected {KEY_PREFIX}<id>_<secret>_<checksum>, {KEY_LENGTH} characters; "
            f"got {len(key)} characters."
        )
    return key


def find_base_url(given: str | httpx2.URL | None) -> str:
    """Return the base URL that was given, or OMAI_BASE_URL, or the default."""
    url = str(given or os.environ.get("OMAI_BASE_URL") or DEFAULT_BASE_URL)
    if "@" in urlsplit(url).netloc:  # it would take the key's place, and be in every log line
        raise CredentialsError("base_url holds a password: pass username= and password= instead.")
    return url


def _is_whole(key: str) -> bool:
    """Whether the checksum, a CRC-32 with its 33rd bit set in six digits of base 62, fits."""
    body, _, checksum = key.removeprefix(KEY_PREFIX).rpartition("_")
    value = zlib.crc32(body.encode("ascii")) | 1 << 32
    digits = ""
    for _ in range(6):
        value, digit = divmod(value, len(_BASE62))
        digits = _BASE62[digit] + digits
    return len(key) == KEY_LENGTH and checksum == digits
