"""POST /v1/auth/login and /v1/auth/logout: HTTP Basic, or a JSON body, in; a session cookie out."""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from omai_ray.api.render import ObjectResponse
from omai_ray.api.schemas.common import Credentials, LoggedOut, LoginSession
from omai_ray.api.validation import read_optional_body
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.cookies import clear_cookie, set_cookie
from omai_ray.identity.credentials import Basic
from omai_ray.identity.middleware import client_of, require_same_origin
from omai_ray.settings import SessionSettings


class CookieJar:
    """Puts the session's cookie on responses. trusted_proxies: who is believed to say `https`."""

    def __init__(self, settings: SessionSettings, trusted_proxies: Collection[str]) -> None:
        self._settings = settings
        self._trusted_proxies = trusted_proxies

    @property
    def lifetime_s(self) -> float:
        """How long a client may keep it."""
        return self._settings.absolute_hours * 3600

    def put(self, response: Response, scope: Scope, value: str) -> None:
        """Set the cookie to a new session's value."""
        secure = self._is_secure(scope)
        response.headers["set-cookie"] = set_cookie(value, self.lifetime_s, secure)

    def clear(self, response: Response, scope: Scope) -> None:
        """Make the client forget it."""
        response.headers["set-cookie"] = clear_cookie(self._is_secure(scope))

    def _is_secure(self, scope: Scope) -> bool:
        return self._settings.secure == "always" or client_of(scope, self._trusted_proxies).tls


class AuthRoutes:
    """Opens and closes sessions."""

    def __init__(
        self,
        authenticator: Authenticator,
        settings: SessionSettings,
        trusted_proxies: Collection[str],
        cookies: CookieJar,
    ) -> None:
        self._authenticator = authenticator
        self._origins = settings.origins
        self._trusted_proxies = trusted_proxies
        self._cookies = cookies

    async def login(self, request: Request) -> Response:
        """Answer POST /v1/auth/login. Raises Unauthorized, or RateLimited after many failures."""
        require_same_origin(request.scope, self._origins)
        source = client_of(request.scope, self._trusted_proxies).source
        body = await read_optional_body(request, Credentials)
        credentials = Basic(body.username, body.password) if body else None
        principal, value = await self._authenticator.login(
            request.scope["headers"], credentials, source
        )
        response = ObjectResponse(
            LoginSession(
                account=principal.account_name,
                role=principal.role,
                expires_at=int(time.time() + self._cookies.lifetime_s),
            )
        )
        self._cookies.put(response, request.scope, value)
        return response

    async def logout(self, request: Request) -> Response:
        """Answer POST /v1/auth/logout: the session is over, and the cookie with it."""
        source = client_of(request.scope, self._trusted_proxies).source
        await self._authenticator.logout(request.scope["headers"], source)
        response = ObjectResponse(LoggedOut())
        self._cookies.clear(response, request.scope)
        return response
