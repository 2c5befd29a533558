"""Sending requests as a session's: logging in when one is needed, and once for all who need it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from openai import AsyncOpenAI, AuthenticationError, OpenAI

from omai._credentials import CredentialsError
from omai._session import AsyncSession, Session, forget, is_in_memory, is_same_origin, put_cookie

if TYPE_CHECKING:
    import httpx2

_LOGIN, _LOGOUT = "auth/login", "auth/logout"
AnySession = TypeVar("AnySession", Session, AsyncSession)


class Transport(OpenAI):
    """A client that may have a session."""

    _session: Session | None

    def logout(self) -> None:
        """End the session, for copies of this client too; the next call would open another.

        Raises CredentialsError for a client with a key.
        """
        session = _logged_in(self._session)
        cookie = session.cookie
        if cookie is None:
            return
        with contextlib.suppress(AuthenticationError):  # it had ended
            self.post(f"/{_LOGOUT}", cast_to=object)
        with session.lock:
            session.cookie = None if session.cookie == cookie else session.cookie

    def _send_request(
        self, request: httpx2.Request, *, stream: bool, **kwargs: Any
    ) -> httpx2.Response:
        """Send a request as the session's, if there is one: opened first where need be.

        Where a login is refused, its answer is returned: so it is retried, or raised, by the same
        rules as the request's own.
        """
        session = self._session
        if session is None or not is_same_origin(request.url, self.base_url):
            put_cookie(request.headers, None)
            return super()._send_request(request, stream=stream, **kwargs)
        used = session.cookie
        if used is None or not (is_in_memory(request) or self._is_alive(used, request)):
            refusal = self._log_in(session, used, request)
            if refusal is not None:
                return refusal
            used = session.cookie
        put_cookie(request.headers, used)
        response = super()._send_request(request, stream=stream, **kwargs)
        if not _is_worth_a_login(request, response):
            return response
        response.close()
        refusal = self._log_in(session, used, request)
        if refusal is not None:
            return refusal
        put_cookie(request.headers, session.cookie)
        return super()._send_request(request, stream=stream, **kwargs)

    def _log_in(
        self, session: Session, stale: str | None, cause: httpx2.Request
    ) -> httpx2.Response | None:
        """Replace a stale cookie, once for all threads; return the answer if it is a refusal."""
        seen = session.attempts
        with session.lock:
            if session.is_renewed(stale):
                return None
            if session.attempts == seen:
                login = asdict(session.login)
                try:
                    session.settle(self._send_beside(cause, "POST", _LOGIN, None, json=login))
                except Exception as error:
                    session.fail(error)
            return session.refusal()

    def _is_alive(self, cookie: str, cause: httpx2.Request) -> bool:
        """Ask whether the session is, before a body that can be sent only once."""
        response = self._send_beside(cause, "GET", "models", cookie)
        return response.status_code != 401

    def _send_beside(
        self, cause: httpx2.Request, method: str, path: str, cookie: str | None, **body: Any
    ) -> httpx2.Response:
        """Send a request for the sake of another, past openai's logging, retries and errors."""
        request = self._client.build_request(method, **_beside(self, cause, path), **body)
        put_cookie(request.headers, cookie)
        response = self._client.send(request, follow_redirects=False)
        forget(self._client.cookies)
        response.request = cause  # errors speak of the caller's request, and hold no password
        return response


class AsyncTransport(AsyncOpenAI):
    """An async client that may have a session."""

    _session: AsyncSession | None

    async def logout(self) -> None:
        """End the session, for copies of this client too; the next call would open another.

        Raises CredentialsError for a client with a key.
        """
        session = _logged_in(self._session)
        cookie = session.cookie
        if cookie is None:
            return
        with contextlib.suppress(AuthenticationError):  # it had ended
            await self.post(f"/{_LOGOUT}", cast_to=object)
        async with session.lock:
            session.cookie = None if session.cookie == cookie else session.cookie

    async def _send_request(
        self, request: httpx2.Request, *, stream: bool, **kwargs: Any
    ) -> httpx2.Response:
        """Send a request as the session's, if there is one: opened first where need be.

        Where a login is refused, its answer is returned: so it is retried, or raised, by the same
        rules as the request's own.
        """
        session = self._session
        if session is None or not is_same_origin(request.url, self.base_url):
            put_cookie(request.headers, None)
            return await super()._send_request(request, stream=stream, **kwargs)
        used = session.cookie
        if used is None or not (is_in_memory(request) or await self._is_alive(used, request)):
            refusal = await self._log_in(session, used, request)
            if refusal is not None:
                return refusal
            used = session.cookie
        put_cookie(request.headers, used)
        response = await super()._send_request(request, stream=stream, **kwargs)
        if not _is_worth_a_login(request, response):
            return response
        await response.aclose()
        refusal = await self._log_in(session, used, request)
        if refusal is not None:
            return refusal
        put_cookie(request.headers, session.cookie)
        return await super()._send_request(request, stream=stream, **kwargs)

    async def _log_in(
        self, session: AsyncSession, stale: str | None, cause: httpx2.Request
    ) -> httpx2.Response | None:
        """Replace a stale cookie, once for all tasks; return the answer if it is a refusal."""
        seen = session.attempts
        async with session.lock:
            if session.is_renewed(stale):
                return None
            if session.attempts == seen:
                login = asdict(session.login)
                try:
                    session.settle(await self._send_beside(cause, "POST", _LOGIN, None, json=login))
                except Exception as error:
                    session.fail(error)
            return session.refusal()

    async def _is_alive(self, cookie: str, cause: httpx2.Request) -> bool:
        """Ask whether the session is, before a body that can be sent only once."""
        response = await self._send_beside(cause, "GET", "models", cookie)
        return response.status_code != 401

    async def _send_beside(
        self, cause: httpx2.Request, method: str, path: str, cookie: str | None, **body: Any
    ) -> httpx2.Response:
        """Send a request for the sake of another, past openai's logging, retries and errors."""
        request = self._client.build_request(method, **_beside(self, cause, path), **body)
        put_cookie(request.headers, cookie)
        response = await self._client.send(request, follow_redirects=False)
        forget(self._client.cookies)
        response.request = cause  # errors speak of the caller's request, and hold no password
        return response


def _logged_in(session: AnySession | None) -> AnySession:
    if session is None:
        raise CredentialsError("Only a client with username= and password= has a session.")
    return session


def _is_worth_a_login(request: httpx2.Request, response: httpx2.Response) -> bool:
    """Whether a session has ended on a request that can be sent again."""
    if response.status_code != 401 or request.url.path.endswith(f"/{_LOGOUT}"):
        return False
    return is_in_memory(request)


def _beside(client: OpenAI | AsyncOpenAI, cause: httpx2.Request, path: str) -> dict[str, Any]:
    """Return what a request for the sake of another has of it: where to, and by when."""
    headers = {"Accept": "application/json", "User-Agent": client.user_agent}
    return {
        "url": str(client.base_url.join(path)),
        "headers": {**headers, **client._custom_headers},
        "extensions": {"timeout": cause.extensions["timeout"]},
    }
