"""A login's session: its cookie, and what is known to all who share it."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import anyio

from omai._credentials import CredentialsError, Login

if TYPE_CHECKING:
    import httpx2

COOKIE = "omai_session"


class _State:
    """Logging in, once for all who wait for it.

    cookie: its value while logged in. attempts: how many logins have come to an end; outcome:
    that of the last, where it failed. They change under the lock of a subclass alone.
    """

    def __init__(self, login: Login) -> None:
        self.login = login
        self.cookie: str | None = None
        self.attempts = 0
        self.outcome: httpx2.Response | Exception | None = None

    def is_renewed(self, stale: str | None) -> bool:
        """Whether somebody else has logged in since `stale` was the cookie."""
        return self.cookie is not None and self.cookie != stale

    def fail(self, error: Exception) -> None:
        """Note a login that got no answer."""
        self.attempts += 1
        self.outcome = error

    def settle(self, response: httpx2.Response) -> None:
        """Note the answer to a login."""
        self.attempts += 1
        values = [cookie.value for cookie in response.cookies.jar if cookie.name == COOKIE]
        self.cookie = values[-1] if response.is_success and values else None
        self.outcome = None if response.is_success else response
        if response.is_success and self.cookie is None:
            self.outcome = CredentialsError(
                f"The login was answered without a session cookie: is {response.url} OMAi's?"
            )

    def refusal(self) -> httpx2.Response | None:
        """Return, or raise, how the last login failed: the same for all who waited for it."""
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Session(_State):
    """A session that threads share."""

    def __init__(self, login: Login) -> None:
        super().__init__(login)
        self.lock = threading.Lock()


class AsyncSession(_State):
    """A session that tasks share."""

    def __init__(self, login: Login) -> None:
        super().__init__(login)
        self.lock = anyio.Lock()


def put_cookie(headers: MutableMapping[str, str], value: str | None) -> None:
    """Make the session cookie of a request's headers `value`, or none; other cookies stay.

    An HTTP client's own jar remembers the cookie, and would send it for copies with a key too.
    """
    pairs = [pair.strip() for pair in headers.get("Cookie", "").split(";")]
    pairs = [pair for pair in pairs if pair and pair.partition("=")[0] != COOKIE]
    if value is not None:
        pairs.append(f"{COOKIE}={value}")
    if pairs:
        headers["Cookie"] = "; ".join(pairs)
    else:
        headers.pop("Cookie", None)


def forget(cookies: httpx2.Cookies) -> None:
    """Take the session out of an HTTP client's own jar, which would send it to other ports too."""
    for cookie in [cookie for cookie in cookies.jar if cookie.name == COOKIE]:
        cookies.jar.clear(cookie.domain, cookie.path, cookie.name)


def is_same_origin(url: httpx2.URL, other: httpx2.URL) -> bool:
    """Whether what is secret to one URL may be sent to the other."""
    return (url.scheme, url.host, url.port) == (other.scheme, other.host, other.port)


def is_in_memory(request: httpx2.Request) -> bool:
    """Whether a request can be sent again: a body that is read from a file may be used up."""
    try:
        return isinstance(request.content, bytes)
    except RuntimeError:  # RequestNotRead, of httpx2 or of the httpx that was before it
        return False
