"""POST /v1/auth/login and /v1/auth/logout: HTTP Basic, or a JSON body, in; a session cookie out."""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.render import JsonBytes
from omai_ray.api.schemas.common import Credentials
from omai_ray.api.validation import parse_body
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.cookies import clear_cookie, set_cookie
from omai_ray.identity.credentials import Basic
from omai_ray.identity.middleware import client_of, require_same_origin


class AuthRoutes:
    """Opens and closes sessions."""

    def __init__(self, authenticator: Authenticator, trusted_proxies: Collection[str]) -> None:
        self._authenticator = authenticator
        self._trusted_proxies = trusted_proxies

    async def login(self, request: Request) -> Response:
        """Answer POST /v1/auth/login. Raises Unauthorized, or RateLimited after many failures."""
        require_same_origin(request.scope)
        client = client_of(request.scope, self._trusted_proxies)
        raw = await request.body()
        credentials = None
        if raw.strip():
            body = parse_body(raw, Credentials)
            credentials = Basic(body.username, body.password)
        principal, value = await self._authenticator.login(
            request.scope["headers"], credentials, client.source
        )
        lifetime_s = self._authenticator.sessions.absolute_s
        response = JsonBytes(
            {
                "object": "session",
                "account": principal.account_name,
                "role": principal.role,
                "expires_at": int(time.time() + lifetime_s),
            }
        )
        response.headers["set-cookie"] = set_cookie(value, lifetime_s, client.tls)
        response.headers["cache-control"] = "no-store"
        return response

    async def logout(self, request: Request) -> Response:
        """Answer POST /v1/auth/logout: the session is over, and the cookie with it."""
        await self._authenticator.logout(request.scope["headers"])
        response = JsonBytes({"object": "session", "deleted": True})
        tls = client_of(request.scope, self._trusted_proxies).tls
        response.headers["set-cookie"] = clear_cookie(tls)
        return response
