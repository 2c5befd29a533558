from __future__ import annotations

from typing import Any

import pytest

from omai_ray.errors import PermissionDenied, Unauthorized
from omai_ray.identity.middleware import Client, IdentityMiddleware, client_of
from omai_ray.identity.principal import Principal

BY_KEY = Principal("acct", "ada", "basic", key_id="k")
BY_COOKIE = Principal("acct", "ada", "basic", user_id="u", session_id="s", role="owner")


class Authenticating:
    """Answers with one principal, and notes who asked."""

    def __init__(self, principal: Principal | None) -> None:
        self.principal = principal
        self.sources: list[str] = []

    async def authenticate(self, headers: Any, source: str) -> Principal:
        self.sources.append(source)
        if self.principal is None:
            raise Unauthorized("no")
        return self.principal


def scope_of(
    method: str = "GET",
    path: str = "/v1/models",
    headers: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a request as ASGI has it."""
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "scheme": "http"}
    return scope | {"client": ("1.2.3.4", 5)} | more


async def call(authenticating: Authenticating, scope: dict[str, Any], **options: Any) -> bool:
    """Return whether the request got through."""
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    await IdentityMiddleware(app, authenticating, **options)(scope, None, None)  # type: ignore[arg-type]
    return reached == [scope]


async def test_the_principal_is_in_the_scopes_state() -> None:
    """And where they came from, beside what is there already."""
    scope = scope_of(state={"request_id": "r"})
    assert await call(Authenticating(BY_KEY), scope)
    assert {"request_id": "r", "principal": BY_KEY, "source": "1.2.3.4"} == scope["state"]

    bare = scope_of()
    assert await call(Authenticating(BY_KEY), bare)
    assert {"principal": BY_KEY, "source": "1.2.3.4"} == bare["state"]


async def test_errors_are_left_to_an_outer_middleware() -> None:
    """Nothing is sent, and the application is not reached."""
    with pytest.raises(Unauthorized):
        await call(Authenticating(None), scope_of())


@pytest.mark.parametrize(
    "scope",
    [
        scope_of("OPTIONS", "/v1/chat/completions"),
        scope_of("GET", "/healthz"),
        {"type": "lifespan"},
    ],
)
async def test_preflights_and_public_paths_need_no_credentials(scope: dict[str, Any]) -> None:
    """Nor is anybody asked."""
    authenticating = Authenticating(None)
    assert await call(authenticating, scope, public=frozenset({"/healthz"}))
    assert [] == authenticating.sources
    assert "state" not in scope


@pytest.mark.parametrize("path", ["/healthz/", "/healthz/x", "//healthz", "/HEALTHZ", ""])
async def test_public_paths_are_exact(path: str) -> None:
    """What merely looks like one is not public."""
    with pytest.raises(Unauthorized):
        await call(Authenticating(None), scope_of(path=path), public=frozenset({"/healthz"}))


async def test_websockets_are_authenticated() -> None:
    """A type that was forgotten would be open."""
    scope = scope_of(headers={"origin": "https://evil.example", "host": "api.example"})
    del scope["method"]
    with pytest.raises(PermissionDenied):
        await call(Authenticating(BY_COOKIE), scope | {"type": "websocket"})


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "api.example"),
        ("https://api.example:444", "api.example"),
        ("https://api.example.evil.example", "api.example"),
        ("null", "api.example"),
        ("https://[", "api.example"),
        ("https://", ""),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
async def test_another_sites_request_with_a_cookie_is_denied(
    method: str, origin: str, host: str
) -> None:
    """The browser sent the cookie, the user did not."""
    scope = scope_of(method, headers={"origin": origin, "host": host})
    with pytest.raises(PermissionDenied, match="another site's"):
        await call(Authenticating(BY_COOKIE), scope)


async def test_the_origin_matters_only_for_unsafe_requests_with_a_cookie() -> None:
    """A key is sent on purpose; and clients that are no browser have no Origin."""
    other = {"origin": "https://evil.example", "host": "api.example"}
    same = {"origin": "https://API.example:8443", "host": "api.example:8443"}
    assert await call(Authenticating(BY_KEY), scope_of("POST", headers=other))
    assert await call(Authenticating(BY_COOKIE), scope_of("GET", headers=other))
    assert await call(Authenticating(BY_COOKIE), scope_of("POST", headers=same))
    assert await call(Authenticating(BY_COOKIE), scope_of("POST", headers={"host": "a"}))


FORWARDED = {"x-forwarded-proto": "https", "x-forwarded-for": "6.6.6.6, 9.9.9.9, 10.0.0.2"}


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [
        ((), Client("1.2.3.4", False)),
        (("5.5.5.5",), Client("1.2.3.4", False)),
        (("1.2.3.4",), Client("10.0.0.2", True)),
        (("1.2.3.4", "10.0.0.0/8"), Client("9.9.9.9", True)),
        (("1.2.3.0/24", "10.0.0.2", "nonsense"), Client("9.9.9.9", True)),
        (("*",), Client("10.0.0.2", True)),
    ],
)
def test_forwarded_headers_are_believed_of_trusted_proxies_only(
    trusted: tuple[str, ...], expected: Client
) -> None:
    """The client is the last address that is no proxy of ours: the first one it can make up."""
    assert expected == client_of(scope_of(headers=FORWARDED), trusted)


def test_without_a_proxy_the_connection_decides() -> None:
    """Its peer and its scheme."""
    assert Client("1.2.3.4", True) == client_of(scope_of(scheme="https"))
    assert Client("unknown", False) == client_of(scope_of(client=None))
    assert Client("1.2.3.4", True) == client_of(scope_of(scheme="https"), ("1.2.3.4",))


async def test_the_throttle_sees_the_client_behind_the_proxy() -> None:
    """Otherwise one guesser would lock out everybody."""
    authenticating = Authenticating(BY_KEY)
    await call(authenticating, scope_of(headers=FORWARDED), trusted_proxies=("1.2.3.4",))

    assert ["10.0.0.2"] == authenticating.sources
