"""Who may call: keys, passwords and sessions, through HTTP."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from omai_ray.api.app import create_app
from omai_ray.identity import keys
from omai_ray.settings import SessionSettings
from omai_ray.store import Store
from omai_ray.store.store import overloaded
from tests.api.conftest import EMBEDDING, Api, bearer
from tests.api.shapes import check_error

PASSWORD = "correct horse"
BODY = {"model": EMBEDDING, "input": "fox"}
ALICE = httpx.BasicAuth("alice", PASSWORD)


@pytest.fixture
async def alice(api: Api) -> None:
    """Create the user alice."""
    await api.admin.users.create("alice", PASSWORD, tier="enterprise")


def altered(key: str) -> str:
    """Return a well-formed key with another secret."""
    other, _ = keys.generate()
    parsed = keys.parse(key)
    assert parsed is not None
    body = f"{parsed.key_id}_{other.secret}"
    return f"{keys.PREFIX}{body}_{keys._checksum(body)}"


async def test_no_credentials_are_a_401_that_says_what_to_send(api: Api) -> None:
    """With WWW-Authenticate, on every endpoint, unknown ones too."""
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/nothing"),
        ("POST", "/v1/auth/logout"),
    ):
        response = await api.client.request(method, path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"].startswith("req_")
        check_error(
            response.json(), type="invalid_request_error", code="invalid_api_key", param=None
        )
        assert "You didn't provide an API key" in response.text


async def test_a_wrong_key_is_refused_without_being_shown(api: Api) -> None:
    """Another secret, another checksum, no key at all: one answer, at most its last four."""
    _, key = await api.key()
    wrong = altered(key)
    for token in (wrong, key[:-1] + ("a" if key[-1] != "a" else "b"), "sk-abc", key + "x"):
        response = await api.embed(bearer(token))
        assert response.status_code == 401
        assert "Incorrect API key provided" in response.text
        assert token not in response.text
        assert token[-12:] not in response.text or len(token) < 12


async def test_a_revoked_key_is_refused_by_name(api: Api) -> None:
    """Once its cached entry is forgotten, as it is after some seconds."""
    account = await api.admin.accounts.create(None, "enterprise")
    record, key = await api.admin.keys.create(account.id, name="laptop")
    assert (await api.embed(bearer(key))).status_code == 200
    await api.admin.keys.revoke(record.id)
    api.services.authenticator.forget_key(record.id)
    response = await api.embed(bearer(key))
    assert response.status_code == 401
    assert "'laptop' has been revoked" in response.text


async def test_a_suspended_account_is_forbidden(api: Api) -> None:
    """Known and not allowed: 403."""
    account, key = await api.key()
    await api.admin.accounts.update(account, status="suspended")
    response = await api.embed(bearer(key))
    assert response.status_code == 403
    check_error(response.json(), type="permission_denied", code="permission_denied", param=None)


@pytest.mark.usefixtures("alice")
async def test_basic_works_on_every_endpoint(api: Api) -> None:
    """No login is needed first."""
    assert (await api.client.get("/v1/models", auth=ALICE)).status_code == 200
    assert (await api.client.post("/v1/embeddings", auth=ALICE, json=BODY)).status_code == 200


@pytest.mark.usefixtures("alice")
async def test_a_login_as_in_the_reference_opens_a_session(api: Api) -> None:
    """Basic on the login and on every later call, as `requests` sends it; an empty body."""
    client = api.client
    response = await client.post("/v1/auth/login", auth=ALICE, headers={"Content-Length": "0"})
    assert response.status_code == 200
    assert response.json()["account"] == "alice"
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    assert response.headers["cache-control"] == "no-store"
    assert client.cookies["omai_session"]
    assert (await client.get("/v1/models", auth=ALICE)).status_code == 200
    assert (await client.get("/v1/models")).status_code == 200
    wrong = httpx.BasicAuth("alice", "another password")
    assert (await client.get("/v1/models", auth=wrong)).status_code == 200


@pytest.mark.usefixtures("alice")
async def test_a_login_by_json_opens_a_session(api: Api) -> None:
    """Username and password in the body."""
    body = {"username": "alice", "password": PASSWORD}
    assert (await api.client.post("/v1/auth/login", json=body)).status_code == 200
    assert (await api.client.post("/v1/embeddings", json=BODY)).status_code == 200


@pytest.mark.usefixtures("alice")
async def test_a_logout_ends_the_session_and_clears_the_cookie(api: Api) -> None:
    """The cookie is worth nothing afterwards, also where a client kept it."""
    await api.client.post("/v1/auth/login", auth=ALICE)
    value = api.client.cookies["omai_session"]
    response = await api.client.post("/v1/auth/logout")
    assert response.status_code == 200
    assert "Max-Age=0" in response.headers["set-cookie"]
    response = await api.client.get("/v1/models", headers={"Cookie": f"omai_session={value}"})
    assert response.status_code == 401
    assert "session has ended" in response.text


@pytest.mark.usefixtures("alice")
async def test_a_write_by_cookie_from_another_site_is_refused(api: Api) -> None:
    """The Origin must be this host where only the cookie speaks for the caller; reads may."""
    await api.client.post("/v1/auth/login", auth=ALICE)
    for origin, status in (("https://evil.example", 403), ("null", 403), ("http://test", 200)):
        response = await api.client.post("/v1/embeddings", headers={"Origin": origin}, json=BODY)
        assert status == response.status_code
    response = await api.client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert response.status_code == 200


@pytest.mark.usefixtures("alice")
async def test_a_key_may_be_used_from_another_site(api: Api) -> None:
    """A key travels only where its owner puts it."""
    headers = {**await api.headers(), "Origin": "https://app.example"}
    assert (await api.embed(headers)).status_code == 200


@pytest.mark.usefixtures("alice")
async def test_a_login_from_another_site_is_refused(api: Api) -> None:
    """Nobody is logged in to an account that another site chose."""
    response = await api.client.post(
        "/v1/auth/login", auth=ALICE, headers={"Origin": "https://evil.example"}
    )
    assert response.status_code == 403


@pytest.mark.usefixtures("alice")
@pytest.mark.fault(18)
async def test_unknown_user_and_wrong_password_are_one_answer(api: Api) -> None:
    """Nobody learns who has an account."""
    answers = []
    for name in ("alice", "nobody"):
        response = await api.client.post(
            "/v1/auth/login", auth=httpx.BasicAuth(name, "another password")
        )
        assert response.status_code == 401
        answers.append(response.json())
    assert answers[0] == answers[1]
    assert "Incorrect username or password." == answers[0]["error"]["message"]


@pytest.mark.usefixtures("alice")
@pytest.mark.fault(18)
async def test_many_wrong_passwords_are_slowed_down(api: Api) -> None:
    """429 with Retry-After, before a password is hashed."""
    statuses = []
    for number in range(11):
        auth = httpx.BasicAuth("alice", f"wrong password {number}")
        response = await api.client.post("/v1/auth/login", auth=auth)
        statuses.append(response.status_code)
    assert statuses == [401] * 10 + [429]
    assert int(response.headers["retry-after"]) >= 1
    check_error(response.json(), type="requests", code="rate_limit_exceeded", param=None)


@pytest.mark.fault(18)
@pytest.mark.usefixtures("alice")
async def test_a_thousand_bad_logins_tell_nothing_and_keep_nobody_else_out(api: Api) -> None:
    """A user that there is and one that there is not get the same; alice logs in elsewhere."""
    kinds = {}
    for name, source in (("alice", "6.6.6.6"), ("nobody", "6.6.6.7")):
        transport = httpx.ASGITransport(app=api.app, client=(source, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = [
                await client.post("/v1/auth/login", auth=httpx.BasicAuth(name, f"guess {number}"))
                for number in range(500)
            ]
        kinds[name] = [(a.status_code, a.json()["error"]["code"]) for a in answers]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[10:])
    assert [401] * 10 + [429] * 490 == [status for status, _ in kinds["alice"]]
    assert kinds["alice"] == kinds["nobody"]
    login = await api.client.post("/v1/auth/login", auth=httpx.BasicAuth("alice", PASSWORD))
    assert login.status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"username": "alice"}', 400),
        (b'{"username": "alice", "password": 5}', 400),
        (b'{"username": "alice", "password": "x", "admin": true}', 400),
        (b"", 401),
        (b" ", 401),
    ],
)
async def test_a_login_that_says_nothing_usable_is_refused(
    api: Api, content: bytes, status: int
) -> None:
    """Malformed bodies are 400, absent credentials 401."""
    response = await api.client.post("/v1/auth/login", content=content)
    assert status == response.status_code
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic !!!",
        "Basic YWxpY2U=",
        "Bearer",
        "Bearer ",
        "Digest x",
        "Bearer " + "a" * 5000,
    ],
)
async def test_credentials_that_are_none_are_a_401(api: Api, value: str) -> None:
    """Malformed headers cost no query, and are not repeated."""
    response = await api.client.get("/v1/models", headers={"Authorization": value})
    assert response.status_code == 401
    assert "a" * 100 not in response.text


async def test_two_authorization_headers_are_refused(api: Api) -> None:
    """Nobody guesses which one counts."""
    _, key = await api.key()
    headers = [("Authorization", f"Bearer {key}"), ("Authorization", "Bearer x")]
    response = await api.client.get("/v1/models", headers=headers)
    assert response.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        [("AUTHORIZATION", "bearer {key}")],
        [("authorization", "  BEARER   {key}  ")],
        [("Authorization", "Bearer {key}"), ("X-Authorization", "Bearer other")],
        [("Authorization", "Bearer {key}"), ("Cookie", "omai_session=short; other=1")],
    ],
)
async def test_a_key_is_found_however_its_header_is_written(
    api: Api, headers: list[tuple[str, str]]
) -> None:
    """Case and spaces do not matter; what is none of ours is ignored."""
    _, key = await api.key()
    sent = [(name, value.format(key=key)) for name, value in headers]
    assert (await api.client.get("/v1/models", headers=sent)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer {key}"), ("authorization", "Bearer {key}")],
        [("Authorization", "Bearer {key}, Bearer {key}")],
        [("Authorization", "Bearer {key} x")],
        [("Authorization", "Bearer\t{key}")],
        [("Authorization", "Bearer {key}\u00e9")],
        [("Authorization", "Bearer " + "a" * 20_000)],
        [("Authorization", "Basic " + "a" * 20_000)],
        [("Cookie", "omai_session=" + "a" * 20_000)],
        [("Authorization", "Bearer {key}"), ("Cookie", "x=" + "a" * 20_000)],
    ],
)
async def test_smuggled_credentials_are_refused(api: Api, headers: list[tuple[str, str]]) -> None:
    """Doubled, joined, decorated or endless ones; nothing of them is repeated."""
    _, key = await api.key()
    sent = [(name.encode(), value.format(key=key).encode("latin-1")) for name, value in headers]
    response = await api.client.get("/v1/models", headers=sent)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert key not in response.text
    assert len(response.content) < 1000


@pytest.mark.usefixtures("alice")
async def test_tampered_and_foreign_cookies_open_nothing(api: Api) -> None:
    """One changed character, another service's, two at once: only a real one counts."""
    await api.client.post("/v1/auth/login", auth=ALICE)
    value = api.client.cookies["omai_session"]
    api.client.cookies.clear()
    changed = ("A" if value[0] != "A" else "B") + value[1:]
    for cookie, status in (
        (f"omai_session={value}", 200),
        (f"omai_session={changed}", 401),
        (f"omai_session={value}x", 401),
        (f"session={value}", 401),
        (f"OMAI_SESSION={value}", 401),
        ("omai_session=", 401),
        (f'omai_session="{value}"', 401),
    ):
        response = await api.client.get("/v1/models", headers={"Cookie": cookie})
        assert status == response.status_code, cookie.replace(value, "...")


@pytest.mark.parametrize(
    ("settings", "proxies", "headers", "secure"),
    [
        (SessionSettings(), (), {}, False),
        (SessionSettings(), (), {"X-Forwarded-Proto": "https"}, False),
        (SessionSettings(), ("127.0.0.1",), {"X-Forwarded-Proto": "https"}, True),
        (SessionSettings(), ("127.0.0.1",), {"X-Forwarded-Proto": "http"}, False),
        (SessionSettings(secure="always"), (), {}, True),
    ],
)
@pytest.mark.usefixtures("alice")
async def test_the_cookie_is_secure_where_the_login_came_by_tls(
    api: Api,
    settings: SessionSettings,
    proxies: tuple[str, ...],
    headers: dict[str, str],
    secure: bool,
) -> None:
    """Only a trusted proxy is believed to say so; a setting does without."""
    services = replace(api.services, sessions=settings, trusted_proxies=proxies)
    transport = httpx.ASGITransport(app=create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/v1/auth/login", auth=ALICE, headers=headers)
    assert response.status_code == 200
    assert secure == ("Secure" in response.headers["set-cookie"].split("; "))


@pytest.mark.usefixtures("alice")
async def test_named_origins_may_write_by_cookie(api: Api) -> None:
    """A console of one's own, or the server's own name where a proxy in front replaces it."""
    sessions = SessionSettings(origins=("https://console.example",))
    transport = httpx.ASGITransport(app=create_app(replace(api.services, sessions=sessions)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for origin, status in (
            ("https://console.example", 200),
            ("http://console.example", 403),
            ("https://console.example.evil.example", 403),
            ("http://test", 200),
        ):
            login = await client.post("/v1/auth/login", auth=ALICE, headers={"Origin": origin})
            assert status == login.status_code
        response = await client.post(
            "/v1/embeddings", json=BODY, headers={"Origin": "https://console.example"}
        )
    assert response.status_code == 200


@pytest.mark.fault(8)
async def test_a_locked_database_refuses_only_those_it_does_not_know(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known keys are served, others told to come back; usage is whole once it is free again."""
    monkeypatch.setattr("omai_ray.store.engine.BUSY_S", 0.01)
    account, known = await api.key()
    _, unknown = await api.key()
    assert (await api.embed(bearer(known))).status_code == 200
    holder = sqlite3.connect(tmp_path / "omai.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    waiting = [asyncio.create_task(api.embed(bearer(known))) for _ in range(5)]
    assert (await api.client.get("/v1/models", headers=bearer(known))).status_code == 200
    with monkeypatch.context() as away:

        def overload(*_: object) -> object:
            raise overloaded()

        away.setattr(Store, "reading", overload)
        refused = await api.client.get("/v1/models", headers=bearer(unknown))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    check_error(refused.json(), type="server_error", code="server_is_overloaded", param=None)
    holder.rollback()
    holder.close()
    assert {200} == {response.status_code for response in await asyncio.gather(*waiting)}
    assert (await api.ledger.totals(account)).requests == 6
