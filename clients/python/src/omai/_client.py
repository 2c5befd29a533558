"""The clients: openai's, with OMAi's credentials, sessions and additional endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import openai
from openai import DEFAULT_MAX_RETRIES, AsyncOpenAI, OpenAI, not_given

from omai._credentials import Login, check_key, find_base_url, find_key, find_login
from omai._endpoints import AsyncEndpoints, Endpoints
from omai._session import AsyncSession, Session
from omai._transport import AsyncTransport, Transport
from omai._usage import AsyncUsage, Usage
from omai._version import __version__
from omai._wrapped import (
    AsyncOMAiWithRawResponse,
    AsyncOMAiWithStreamingResponse,
    OMAiWithRawResponse,
    OMAiWithStreamingResponse,
)

if TYPE_CHECKING:
    import httpx2
    from openai import NotGiven, Timeout
    from typing_extensions import Self


class _Common:
    """What both clients do in place of openai's."""

    api_key: str

    @property
    def user_agent(self) -> str:
        """What servers log."""
        return f"omai-sdk/{__version__} openai-python/{openai.__version__}"

    def _auth_headers(self, security: object) -> dict[str, str]:
        """Return the key's header, for every endpoint: a session has none."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def _copied(self: Any, login: Login | None, api_key: Any, **options: Any) -> Any:
        """Return a client with these options, and with this one's credentials where none is given.

        It shares the session, if there is one, as long as both are of one server.
        """
        session = None if login or api_key else self._session
        login = login or (session.login if session else None)
        copied = self.__class__(
            api_key=api_key or (None if login else self._api_key_provider or self.api_key),
            username=login.username if login else None,
            password=login.password if login else None,
            **options,
        )
        if session is not None and copied.base_url == self.base_url:
            copied._session = session
        return copied

    def _validate_headers(self, headers: object, custom_headers: object) -> None:
        """Accept requests without Authorization, which is how those of sessions are sent."""


class OMAi(_Common, Endpoints, Transport):
    """A client of the OMAi API.

    api_key: a key, or a function that returns one whenever it is needed; OMAI_API_KEY unless
    given. username, password: for a session instead of a key; it is opened by the first call, and
    again when it has ended. base_url: OMAI_BASE_URL unless given. The rest is as openai's client
    has it. No environment variable of openai's is regarded. Raises CredentialsError.
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], str] | None = None,
        username: str | None = None,
        password: str | None = None,
        base_url: str | httpx2.URL | None = None,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int = DEFAULT_MAX_RETRIES,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        http_client: httpx2.Client | None = None,
    ) -> None:
        login = find_login(username, password, api_key)
        super().__init__(
            api_key="" if login else _checked(api_key),
            base_url=find_base_url(base_url),
            timeout=timeout,
            max_retries=max_retries,
            default_headers=default_headers,
            default_query=default_query,
            http_client=http_client,
            _enforce_credentials=False,
        )
        _leave_out_openai(self, default_headers)
        self._session = Session(login) if login else None

    def copy(  # type: ignore[override] # OMAi has no organizations, projects or providers
        self,
        *,
        api_key: str | Callable[[], str] | None = None,
        username: str | None = None,
        password: str | None = None,
        base_url: str | httpx2.URL | None = None,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int | NotGiven = not_given,
        default_headers: Mapping[str, str] | None = None,
        set_default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        set_default_query: Mapping[str, object] | None = None,
        http_client: httpx2.Client | None = None,
    ) -> Self:
        """Return a client with other options. It shares connections, and the session if any."""
        copied: Self = self._copied(
            find_login(username, password, api_key),
            api_key,
            base_url=base_url or self.base_url,
            timeout=self.timeout if isinstance(timeout, openai.NotGiven) else timeout,
            max_retries=self.max_retries
            if isinstance(max_retries, openai.NotGiven)
            else max_retries,
            default_headers=_merged(self._custom_headers, default_headers, set_default_headers),
            default_query=_merged(self._custom_query, default_query, set_default_query),
            http_client=http_client or self._client,
        )
        return copied

    with_options = copy  # type: ignore[assignment]

    @cached_property
    def usage(self) -> Usage:
        """What the account has used."""
        return Usage(self)

    @cached_property
    def with_raw_response(self) -> OMAiWithRawResponse:
        """The same methods, answering with raw responses."""
        return OMAiWithRawResponse(self)

    @cached_property
    def with_streaming_response(self) -> OMAiWithStreamingResponse:
        """The same methods, answering with responses whose bodies are read by the caller."""
        return OMAiWithStreamingResponse(self)


class AsyncOMAi(_Common, AsyncEndpoints, AsyncTransport):
    """An async client of the OMAi API.

    api_key: a key, or an async function that returns one whenever it is needed; OMAI_API_KEY unless
    given. username, password: for a session instead of a key; it is opened by the first call, and
    again when it has ended. base_url: OMAI_BASE_URL unless given. The rest is as openai's client
    has it. No environment variable of openai's is regarded. Raises CredentialsError.
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        username: str | None = None,
        password: str | None = None,
        base_url: str | httpx2.URL | None = None,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int = DEFAULT_MAX_RETRIES,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        login = find_login(username, password, api_key)
        super().__init__(
            api_key="" if login else _checked_async(api_key),
            base_url=find_base_url(base_url),
            timeout=timeout,
            max_retries=max_retries,
            default_headers=default_headers,
            default_query=default_query,
            http_client=http_client,
            _enforce_credentials=False,
        )
        _leave_out_openai(self, default_headers)
        self._session = AsyncSession(login) if login else None

    def copy(  # type: ignore[override] # OMAi has no organizations, projects or providers
        self,
        *,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        username: str | None = None,
        password: str | None = None,
        base_url: str | httpx2.URL | None = None,
        timeout: float | Timeout | NotGiven | None = not_given,
        max_retries: int | NotGiven = not_given,
        default_headers: Mapping[str, str] | None = None,
        set_default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        set_default_query: Mapping[str, object] | None = None,
        http_client: httpx2.AsyncClient | None = None,
    ) -> Self:
        """Return a client with other options. It shares connections, and the session if any."""
        copied: Self = self._copied(
            find_login(username, password, api_key),
            api_key,
            base_url=base_url or self.base_url,
            timeout=self.timeout if isinstance(timeout, openai.NotGiven) else timeout,
            max_retries=self.max_retries
            if isinstance(max_retries, openai.NotGiven)
            else max_retries,
            default_headers=_merged(self._custom_headers, default_headers, set_default_headers),
            default_query=_merged(self._custom_query, default_query, set_default_query),
            http_client=http_client or self._client,
        )
        return copied

    with_options = copy  # type: ignore[assignment]

    @cached_property
    def usage(self) -> AsyncUsage:
        """What the account has used."""
        return AsyncUsage(self)

    @cached_property
    def with_raw_response(self) -> AsyncOMAiWithRawResponse:
        """The same methods, answering with raw responses."""
        return AsyncOMAiWithRawResponse(self)

    @cached_property
    def with_streaming_response(self) -> AsyncOMAiWithStreamingResponse:
        """The same methods, answering with responses whose bodies are read by the caller."""
        return AsyncOMAiWithStreamingResponse(self)


def _checked(api_key: str | Callable[[], str] | None) -> str | Callable[[], str]:
    if api_key is None or isinstance(api_key, str):
        return find_key(api_key)
    provide = api_key
    return lambda: check_key(provide())


def _checked_async(
    api_key: str | Callable[[], Awaitable[str]] | None,
) -> str | Callable[[], Awaitable[str]]:
    if api_key is None or isinstance(api_key, str):
        return find_key(api_key)
    provide = api_key

    async def checked() -> str:
        return check_key(await provide())

    return checked


def _leave_out_openai(
    client: OpenAI | AsyncOpenAI, default_headers: Mapping[str, str] | None
) -> None:
    """Undo what openai's constructor took from its own environment variables.

    It does so for every argument that is None, and for headers always.
    """
    client.organization = client.project = client.admin_api_key = client.webhook_secret = None
    client._custom_headers = dict(default_headers or {})
    client._idempotency_header = "Idempotency-Key"


def _merged(
    current: Mapping[str, Any], added: Mapping[str, Any] | None, instead: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    if added is not None and instead is not None:
        raise ValueError("Pass default_headers= or set_default_headers= (or _query), not both.")
    return {**current, **added} if added is not None else current if instead is None else instead
