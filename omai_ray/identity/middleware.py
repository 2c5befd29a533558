"""Pure ASGI: puts the principal into the scope, or raises for an outer middleware to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Protocol
from urllib.parse import urlsplit

from omai_ray.errors import PermissionDenied
from omai_ray.identity.credentials import Headers
from omai_ray.identity.principal import Principal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Authenticates(Protocol):
    """What the middleware needs of an Authenticator."""

    async def authenticate(self, headers: Headers, source: str) -> Principal:
        """Return the caller, or raise."""


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request came from; tls: whether it did so encrypted."""

    source: str
    tls: bool


class IdentityMiddleware:
    """Sets `scope["state"]["principal"]` on every request but OPTIONS and `public` paths.

    Raises what the authenticator raises, and PermissionDenied for a request that another site
    made a browser send. trusted_proxies: peers whose X-Forwarded-* headers are believed. origins:
    other sites that may.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticates,
        public: frozenset[str] = frozenset(),
        trusted_proxies: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self._origins = origins
        self._app = app
        self._authenticator = authenticator
        self._public = public
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate, then pass the request on."""
        if scope["type"] != "lifespan" and not self._is_open(scope):
            source = client_of(scope, self._trusted_proxies).source
            principal = await self._authenticator.authenticate(scope["headers"], source)
            if principal.session_id is not None:
                require_same_origin(scope, self._origins)
            scope.setdefault("state", {}).update(principal=principal, source=source)
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope.get("method") == "OPTIONS" or scope["path"] in self._public


def source_of(scope: Scope) -> str:
    """Return where an authenticated request came from."""
    source: str = scope["state"]["source"]
    return source


def require_same_origin(scope: Scope, origins: Collection[str] = ()) -> None:
    """Raise PermissionDenied for an unsafe request whose Origin is not the host it was sent to.

    Only a cookie travels without its owner's doing, so this is for requests that rely on one.
    origins: others that are trusted, and the way to name the server's own where a proxy in front
    replaces the host.
    """
    if scope.get("method") in _SAFE_METHODS:
        return
    sent = _values(scope, b"origin")
    if not sent or (len(sent) == 1 and sent[0].lower() in origins):
        return
    try:
        host = urlsplit(sent[0]).netloc.lower()
    except ValueError:
        host = ""
    if len(sent) > 1 or not host or [host] != [v.lower() for v in _values(scope, b"host")]:
        raise PermissionDenied("The request's Origin is another site's: use an API key instead.")


def client_of(scope: Scope, trusted_proxies: Collection[str] = ()) -> Client:
    """Return where a request came from, looking behind the proxies that are trusted.

    trusted_proxies: addresses, networks (`10.0.0.0/8`), or `*` for any peer.
    """
    peer = scope.get("client")
    source = peer[0] if peer else "unknown"
    tls = scope.get("scheme") in ("https", "wss")
    if not _is_trusted(source, trusted_proxies):
        return Client(source, tls)
    protocols = _listed(scope, b"x-forwarded-proto")
    if protocols:
        tls = protocols[-1].lower() == "https"
    # Each proxy appends the peer that it saw: the last one that is no proxy of ours is the client.
    for address in reversed(_listed(scope, b"x-forwarded-for")):
        source = address
        if "*" in trusted_proxies or not _is_trusted(address, trusted_proxies):
            break
    return Client(source, tls)


def _is_trusted(address: str, trusted_proxies: Collection[str]) -> bool:
    if address in trusted_proxies or "*" in trusted_proxies:
        return True
    try:
        parsed = ip_address(address)
        return any(parsed in ip_network(entry) for entry in trusted_proxies if "/" in entry)
    except ValueError:
        return False


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _listed(scope: Scope, name: bytes) -> list[str]:
    items = ",".join(_values(scope, name)).split(",")
    return [item.strip() for item in items if item.strip()]
