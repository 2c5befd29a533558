"""HEAD and OPTIONS, for every route."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class MethodsMiddleware:
    """Answers OPTIONS with the methods of a path, and HEAD as GET without its body.

    A route of its own for HEAD goes before.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method = scope.get("method")
        if method not in ("HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        allowed = allowed_methods(self._routes, scope)
        if method == "OPTIONS" and allowed:
            await Response(status_code=204, headers={"Allow": ", ".join(allowed)})(
                scope, receive, send
            )
        elif method == "HEAD" and "GET" in allowed and not self._has(scope):
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
        else:
            await self._app(scope, receive, send)

    def _has(self, scope: Scope) -> bool:
        """Whether a route takes this very method: one of its own for HEAD saves what GET costs."""
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)


def allowed_methods(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """Return what a path answers to, empty where there is no such path."""
    methods: set[str] = set()
    for route in routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ("GET",))  # files, where mounted
    if "GET" in methods:
        methods.add("HEAD")
    return sorted({*methods, "OPTIONS"}) if methods else []


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
