"""Accounts, users, keys, usage and the audit log, through HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.api.conftest import CHAT, EMBEDDING, Api, bearer
from tests.api.shapes import check_error

PASSWORD = "correct horse"
Call = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
async def root(api: Api) -> httpx.BasicAuth:
    """Create an administrator."""
    await api.admin.users.create("root", PASSWORD, tier="enterprise", role="admin")
    return httpx.BasicAuth("root", PASSWORD)


@pytest.fixture
async def call(api: Api, root: httpx.BasicAuth) -> Call:
    """Return what calls an administrative path, and holds every answer against the document."""
    document = (await api.client.get("/openapi.json")).json()

    async def call(method: str, path: str, **options: Any) -> httpx.Response:
        url = f"/v1/admin{path}"
        response = await api.client.request(method, url, auth=root, **options)
        route = template(document, url.partition("?")[0])
        answers = document["paths"][route][method.lower()]["responses"]
        content = answers[str(response.status_code)]["content"]["application/json"]
        jsonschema.validate(response.json(), {**document, **content["schema"]})
        if response.status_code == 200:
            assert response.headers["cache-control"] == "no-store"
        return response

    return call


def template(document: dict[str, Any], path: str) -> str:
    """Return the documented route that a path is of."""
    parts = path.split("/")
    for route in document["paths"]:
        names = route.split("/")
        if len(names) == len(parts) and all(
            name == part or name.startswith("{") for name, part in zip(names, parts, strict=True)
        ):
            return str(route)
    raise AssertionError(f"{path} is not documented")


async def test_an_account_is_made_looked_at_and_changed(call: Call) -> None:
    """By name or id; null takes a bound away."""
    made = await call(
        "POST", "/accounts", json={"name": "lab", "tier": "basic", "models": [CHAT, EMBEDDING]}
    )
    account = made.json()
    assert (made.status_code, account["tier"], account["status"]) == (200, "basic", "active")
    for reference in ("lab", account["id"]):
        assert account == (await call("GET", f"/accounts/{reference}")).json()
    changes = {"tier": "pro", "monthly_tokens": 1000, "models": None}
    changed = (await call("POST", "/accounts/lab", json=changes)).json()
    assert changed == {**account, **changes}
    assert changed == (await call("POST", "/accounts/lab", json={})).json()


async def test_users_are_made_changed_and_deleted(api: Api, call: Call) -> None:
    """A new password ends the old sessions; a deleted user is nobody."""
    user = (await call("POST", "/users", json={
        "name": "ada", "password": PASSWORD, "tier": "basic"})).json()  # fmt: skip
    assert (user["name"], user["role"]) == ("ada", "owner")
    assert "password" not in str(user)
    login = await api.client.post("/v1/auth/login", auth=httpx.BasicAuth("ada", PASSWORD))
    cookie = {"Cookie": f"omai_session={login.cookies['omai_session']}"}
    api.client.cookies.clear()
    sessions = (await call("GET", "/users/ada/sessions")).json()["data"]
    assert [user["id"]] == [session["user_id"] for session in sessions]
    assert (await api.client.get("/v1/models", headers=cookie)).status_code == 200
    assert (await call("DELETE", "/users/ada/sessions")).json()["count"] == 1
    assert (await api.client.get("/v1/models", headers=cookie)).status_code == 401
    await call("POST", "/users/ada", json={"password": "battery staple", "role": "member"})
    old, new = httpx.BasicAuth("ada", PASSWORD), httpx.BasicAuth("ada", "battery staple")
    assert (await api.client.get("/v1/models", auth=old)).status_code == 401
    assert (await api.client.get("/v1/models", auth=new)).status_code == 200
    assert (await call("DELETE", f"/users/{user['id']}")).json()["deleted"]
    assert (await api.client.get("/v1/models", auth=new)).status_code == 401
    assert (await call("GET", "/users/ada")).status_code == 404


async def test_a_key_is_made_changed_rotated_and_revoked(api: Api, call: Call) -> None:
    """Its value is in the answer that makes it, and in no other."""
    await call("POST", "/accounts", json={"name": "lab", "tier": "enterprise"})
    made = (await call("POST", "/keys", json={"account": "lab", "name": "laptop"})).json()
    value = made.pop("value")
    assert (await api.embed(bearer(value))).status_code == 200
    assert made["redacted_value"] == f"omai-sk-{made['id']}_...{value[-4:]}"
    path = f"/keys/{made['id']}"
    shown = await call("GET", path)
    assert value.split("_")[1] not in shown.text
    changed = (await call("POST", path, json={"models": [CHAT], "expires_at": None})).json()
    assert changed["models"] == [CHAT]
    assert (await api.embed(bearer(value))).status_code == 403
    new = (await call("POST", f"{path}/rotate", json={"grace_seconds": 0})).json()
    assert (await api.client.get("/v1/models", headers=bearer(value))).status_code == 401
    assert (await api.client.get("/v1/models", headers=bearer(new["value"]))).status_code == 200
    assert (await call("GET", path)).json()["replaced_by"] == new["id"]
    assert (await call("POST", f"{path}/rotate")).status_code == 400
    revoked = (await call("DELETE", f"/keys/{new['id']}")).json()
    assert revoked["revoked_at"]
    assert (await api.client.get("/v1/models", headers=bearer(new["value"]))).status_code == 401


async def test_lists_are_paged_as_openais_are(call: Call) -> None:
    """first_id, last_id and has_more; `after` goes on."""
    for number in range(5):
        await call("POST", "/accounts", json={"name": f"a{number}", "tier": "basic"})
    first = (await call("GET", "/accounts?limit=4")).json()
    assert (first["object"], len(first["data"]), first["has_more"]) == ("list", 4, True)
    assert (first["first_id"], first["last_id"]) == (
        first["data"][0]["id"],
        first["data"][-1]["id"],
    )
    rest = (await call("GET", f"/accounts?limit=4&after={first['last_id']}")).json()
    assert (["a3", "a4"], False) == ([a["name"] for a in rest["data"]], rest["has_more"])
    empty = (await call("GET", "/keys?account=a0")).json()
    assert ([], None, None, False) == tuple(
        empty[name] for name in ("data", "first_id", "last_id", "has_more")
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "code"),
    [
        ("GET", "/accounts?limit=0", None, "limit", "integer_below_min_value"),
        ("GET", "/accounts?limit=101", None, "limit", "integer_above_max_value"),
        ("GET", "/accounts?limit=x", None, "limit", "invalid_type"),
        ("GET", "/accounts?after=acct_nobody", None, "after", "invalid_value"),
        ("GET", "/accounts?lmit=3", None, "lmit", "unknown_parameter"),
        ("GET", "/accounts?limit=3&limit=4", None, "limit", "invalid_value"),
        ("GET", "/audit?after=x", None, "after", "invalid_value"),
        ("GET", "/usage?start_time=5&end_time=5", None, "end_time", "invalid_value"),
        ("GET", "/usage?group_by=color", None, "group_by", "invalid_value"),
        ("GET", "/usage?bucket_width=1m", None, "bucket_width", "invalid_value"),
        ("POST", "/accounts", {}, "tier", "missing_required_parameter"),
        ("POST", "/accounts", {"tier": "gold"}, "tier", "invalid_value"),
        ("POST", "/accounts", {"tier": "basic", "name": "a b"}, "name", "invalid_value"),
        ("POST", "/accounts", {"tier": "basic", "owner": "me"}, "owner", "unknown_parameter"),
        ("POST", "/accounts", {"tier": "basic", "models": ["x"]}, "models", "invalid_value"),
        ("POST", "/accounts/root", {"status": "gone"}, "status", "invalid_value"),
        ("POST", "/accounts/root", {"name": None}, "name", "invalid_type"),
        ("POST", "/users", {"name": "x", "password": "long enough"}, "account", "invalid_value"),
        ("POST", "/users/root", {"role": "member"}, "role", "invalid_value"),
        ("POST", "/keys", {"account": "root", "expires_at": 1}, "expires_at", "invalid_value"),
        ("POST", "/keys", {"account": "root", "role": "owner"}, "role", "invalid_value"),
        ("POST", "/keys", {"account": "root", "tokens_per_minute": 0}, "tokens_per_minute",
         "integer_below_min_value"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_by_name(
    call: Call, method: str, path: str, body: Any, param: str, code: str
) -> None:
    """In the words and codes of the rest of the API."""
    response = await call(method, path, **({} if body is None else {"json": body}))
    assert response.status_code == 400
    check_error(response.json(), type="invalid_request_error", code=code, param=param)


async def test_what_is_not_there_is_a_404(call: Call) -> None:
    """Whatever is asked of it."""
    for method, path in (
        ("GET", "/accounts/nobody"),
        ("POST", "/accounts/nobody"),
        ("DELETE", "/users/nobody"),
        ("GET", "/keys/nobody"),
        ("DELETE", "/keys/nobody"),
        ("POST", "/keys/nobody/rotate"),
        ("GET", "/usage?account=nobody"),
        ("GET", "/audit?account=nobody"),
    ):
        response = await call(method, path, **({"json": {}} if method == "POST" else {}))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_usage_is_summed_by_model(api: Api, call: Call) -> None:
    """Of one account or all, within a span of time."""
    for _ in range(2):
        account, key = await api.key()
        assert (await api.embed(bearer(key))).status_code == 200
    assert (await api.complete(bearer(key))).status_code == 200
    everyone = {row["model"]: row for row in (await call("GET", "/usage")).json()["data"]}
    assert (2, 1) == (everyone[EMBEDDING]["requests"], everyone[CHAT]["requests"])
    assert everyone[CHAT]["total_tokens"] == (
        everyone[CHAT]["prompt_tokens"] + everyone[CHAT]["completion_tokens"]
    )
    own = (await call("GET", f"/usage?account={account}")).json()["data"]
    assert {EMBEDDING: 1, CHAT: 1} == {row["model"]: row["requests"] for row in own}
    assert [] == (await call("GET", "/usage?end_time=1000")).json()["data"]
    grouped = await call("GET", "/usage?group_by=account,key,model&bucket_width=1d")
    rows = grouped.json()["data"]
    assert 3 == len(rows) == len({(row["account_id"], row["model"]) for row in rows})
    assert all(row["key_id"] and row["start_time"] % 86_400 == 0 for row in rows)
    everything = (await call("GET", "/usage?group_by=account")).json()["data"]
    assert [None] * 2 == [row["model"] for row in everything]


async def test_a_key_of_an_administrator_administers(api: Api, root: httpx.BasicAuth) -> None:
    """Without a password, for programs; one that is a member's does not."""
    for role, status in (("admin", 200), ("member", 403)):
        body = {"account": "root", "role": role}
        made = await api.client.post("/v1/admin/keys", auth=root, json=body)
        response = await api.client.get("/v1/admin/accounts", headers=bearer(made.json()["value"]))
        assert status == response.status_code


@pytest.mark.fault(21)
async def test_nobody_else_administers_and_each_try_is_kept(api: Api, call: Call) -> None:
    """403 for owners, members and keys, on every administrative path, and an audit entry."""
    await api.admin.users.create("ada", PASSWORD, tier="enterprise")
    document = (await api.client.get("/openapi.json")).json()
    paths = [path for path in document["paths"] if path.startswith("/v1/admin/")]
    assert len(paths) == 10
    ada = httpx.BasicAuth("ada", PASSWORD)
    tries = 0
    for path in paths:
        for method in document["paths"][path]:
            real = path.replace("{account}", "root").replace("{user}", "root")
            response = await api.client.request(
                method, real.replace("{key}", "x"), auth=ada, json={"tier": "pro"}
            )
            tries += 1
            assert response.status_code == 403, (method, path)
            check_error(
                response.json(), type="permission_denied", code="permission_denied", param=None
            )
    _, key = await api.key()
    response = await api.client.get("/v1/admin/accounts", headers=bearer(key))
    assert response.status_code == 403
    await api.services.administration.audit.close()
    denied = (await call("GET", "/audit?action=admin.access&limit=100")).json()["data"]
    assert tries + 1 == len(denied)
    assert {"denied"} == {entry["outcome"] for entry in denied}
    assert {"ada", None} == {entry["actor_name"] for entry in denied}


async def test_the_audit_log_tells_who_did_what(api: Api, call: Call) -> None:
    """With the id of the request and where it came from; never a secret."""
    response = await call("POST", "/accounts", json={"name": "lab", "tier": "basic"})
    made = await call("POST", "/keys", json={"account": "lab"})
    await api.client.post("/v1/auth/login", auth=httpx.BasicAuth("root", "wrong password"))
    await api.services.administration.audit.close()
    log = await call("GET", "/audit?limit=100")
    entries = log.json()["data"]
    (created,) = [entry for entry in entries if entry["action"] == "account.create"
                  and entry["details"]["name"] == "lab"]  # fmt: skip
    assert (created["actor_name"], created["request_id"]) == (
        "root",
        response.headers["x-request-id"],
    )
    assert created["source"] == "127.0.0.1"
    (failed,) = [entry for entry in entries if entry["outcome"] == "failure"]
    assert ("password.check", "anonymous") == (failed["action"], failed["actor"])
    for secret in (made.json()["value"].split("_")[1], PASSWORD, "wrong password"):
        assert secret not in log.text
    account = (await call("GET", "/audit?account=lab")).json()["data"]
    assert ["key.create", "account.create"] == [entry["action"] for entry in account]


async def test_a_change_counts_at_once_where_it_is_made(api: Api, call: Call) -> None:
    """A suspension, a new list of models, and a rotation by the whole key."""
    await call("POST", "/accounts", json={"name": "lab", "tier": "enterprise"})
    value = (await call("POST", "/keys", json={"account": "lab"})).json()["value"]
    for changes, status in (
        ({"models": [CHAT]}, 403),
        ({"models": None}, 200),
        ({"status": "suspended"}, 403),
        ({"status": "active"}, 200),
    ):
        await call("POST", "/accounts/lab", json=changes)
        assert status == (await api.embed(bearer(value))).status_code
    await call("POST", f"/keys/{value}/rotate", json={"grace_seconds": 0})
    assert (await api.embed(bearer(value))).status_code == 401


async def test_a_refused_path_leaves_nothing_of_a_key_in_the_audit_log(
    api: Api, call: Call
) -> None:
    """Only the route that it is of."""
    _, key = await api.key()
    secret = key.split("_")[1]
    for path in (f"/v1/admin/keys/{key}", "/v1/admin/users/a%00b", "/v1/admin/users/%1b[2J"):
        assert (await api.client.get(path, headers=bearer(key))).status_code == 403
    await api.services.administration.audit.close()
    log = await call("GET", "/audit?action=admin.access")
    targets = [entry["target"] for entry in log.json()["data"]]
    assert ["GET /v1/admin/users/{user}", "GET /v1/admin/keys/{key}"] == targets
    assert secret[:8] not in log.text


async def test_a_body_that_is_declared_as_something_else_is_refused(
    api: Api, root: httpx.BasicAuth
) -> None:
    """Also where a body may be left out."""
    headers = {"Content-Type": "text/plain"}
    for path in ("/v1/admin/keys/x/rotate", "/v1/auth/login"):
        response = await api.client.post(path, auth=root, headers=headers, content=b"{}")
        assert response.status_code == 415
