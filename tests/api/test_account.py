"""What callers see and change of their own account, through HTTP."""

from __future__ import annotations

import httpx
import pytest

from tests.api.conftest import CHAT, EMBEDDING, Api, bearer
from tests.api.shapes import check_error

PASSWORD = "correct horse"


def auth(name: str, password: str = PASSWORD) -> httpx.BasicAuth:
    """Return a user's credentials."""
    return httpx.BasicAuth(name, password)


@pytest.fixture(autouse=True)
async def lab(api: Api) -> str:
    """Create the account `lab` with the owner ada and the members bob and eve; return its id."""
    account = await api.admin.accounts.create("lab", "pro", monthly_tokens=10_000)
    await api.admin.users.create("ada", PASSWORD, account="lab", role="owner")
    for name in ("bob", "eve"):
        await api.admin.users.create(name, PASSWORD, account="lab")
    return account.id


async def make_key(api: Api, user: str, **fields: object) -> dict[str, object]:
    """Return the answer to a user's wish for a key."""
    response = await api.client.post("/v1/account/keys", auth=auth(user), json=fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_an_account_shows_its_limits_and_what_it_has_used(api: Api, lab: str) -> None:
    """To its keys as well."""
    key = str((await make_key(api, "ada"))["value"])
    used = (await api.embed(bearer(key))).json()["usage"]["total_tokens"]
    for options in ({"headers": bearer(key)}, {"auth": auth("bob")}):
        account = (await api.client.get("/v1/account", **options)).json()
        assert (lab, "lab", "pro") == (account["id"], account["name"], account["tier"])
        assert (3_000, 2_000_000, 10_000, used) == (
            account["requests_per_minute"],
            account["tokens_per_minute"],
            account["monthly_tokens"],
            account["tokens_this_month"],
        )
        for path in ("/v1/usage", "/v1/account/usage"):
            usage = (await api.client.get(path, **options)).json()
            assert [(EMBEDDING, 1, used)] == [
                (row["model"], row["requests"], row["total_tokens"]) for row in usage["data"]
            ]
        refused = await api.client.get("/v1/usage?group_by=account", **options)
        assert refused.json()["error"]["param"] == "group_by"


async def test_a_key_manages_nothing(api: Api) -> None:
    """One that leaked cannot make others, or end a session."""
    key = await make_key(api, "ada")
    headers = bearer(str(key["value"]))
    for method, path in (
        ("GET", "/keys"),
        ("POST", "/keys"),
        ("DELETE", f"/keys/{key['id']}"),
        ("POST", f"/keys/{key['id']}/rotate"),
        ("GET", "/sessions"),
        ("DELETE", "/sessions"),
        ("POST", "/password"),
    ):
        response = await api.client.request(
            method, f"/v1/account{path}", headers=headers, json={} if method == "POST" else None
        )
        assert response.status_code == 403
        check_error(response.json(), type="permission_denied", code="user_required", param=None)


async def test_members_manage_their_own_keys_and_owners_all(api: Api) -> None:
    """Another's key is not there; every verb."""
    ours = {name: await make_key(api, name) for name in ("ada", "bob", "eve")}
    listed = {}
    for name in ours:
        response = await api.client.get("/v1/account/keys", auth=auth(name))
        listed[name] = {key["id"] for key in response.json()["data"]}
    ids = {name: key["id"] for name, key in ours.items()}
    assert listed == {"ada": set(ids.values()), "bob": {ids["bob"]}, "eve": {ids["eve"]}}
    path = f"/v1/account/keys/{ids['eve']}"
    for user, status in (("bob", 404), ("eve", 200), ("ada", 200)):
        requests = (("GET", path), ("POST", path), ("DELETE", path))
        for method, url in requests[: 3 if user != "eve" else 2]:
            body = {"name": "renamed"} if method == "POST" else None
            response = await api.client.request(method, url, auth=auth(user), json=body)
            assert status == response.status_code, (user, method)
    assert (await api.embed(bearer(str(ours["eve"]["value"])))).status_code == 401


@pytest.mark.fault(21)
async def test_another_accounts_key_is_not_there(api: Api) -> None:
    """Even for an owner, or for an administrator in their own account."""
    await api.admin.users.create("root", PASSWORD, tier="enterprise", role="admin")
    key = await make_key(api, "bob")
    for path in (f"/v1/account/keys/{key['id']}", f"/v1/account/keys/{key['value']}"):
        response = await api.client.delete(path, auth=auth("root"))
        assert response.status_code == 404
        assert str(key["value"]) not in response.text
    assert (await api.embed(bearer(str(key["value"])))).status_code == 200


async def test_a_rotated_key_goes_on_for_its_grace(api: Api) -> None:
    """Both work, and the old one's end is told."""
    old = await make_key(api, "bob", name="server")
    response = await api.client.post(f"/v1/account/keys/{old['id']}/rotate", auth=auth("bob"))
    new = response.json()
    assert (new["name"], response.headers["cache-control"]) == ("server", "no-store")
    for value in (old["value"], new["value"]):
        assert (await api.embed(bearer(str(value)))).status_code == 200
    left = (await api.client.get(f"/v1/account/keys/{old['id']}", auth=auth("bob"))).json()
    assert left["expires_at"] == new["created_at"] + 86_400


async def test_a_keys_own_limits_hold_within_its_accounts(api: Api) -> None:
    """The headers are of the bucket that is tighter; the account's other keys go on."""
    slow = await make_key(api, "bob", requests_per_minute=2, tokens_per_minute=1000)
    fast = await make_key(api, "bob")
    first = await api.embed(bearer(str(slow["value"])))
    assert ("2", "1", "1000") == (
        first.headers["x-ratelimit-limit-requests"],
        first.headers["x-ratelimit-remaining-requests"],
        first.headers["x-ratelimit-limit-tokens"],
    )
    assert (await api.embed(bearer(str(slow["value"])))).status_code == 200
    refused = await api.embed(bearer(str(slow["value"])))
    assert refused.status_code == 429
    assert "Limit 2, Used 2" in refused.json()["error"]["message"]
    other = await api.embed(bearer(str(fast["value"])))
    assert ("3000", "2997") == (
        other.headers["x-ratelimit-limit-requests"],
        other.headers["x-ratelimit-remaining-requests"],
    )


async def test_models_outside_an_allow_list_are_forbidden_and_unlisted(api: Api) -> None:
    """Under each of their names; an account's list binds its keys and users."""
    key = bearer(str((await make_key(api, "bob", models=[EMBEDDING]))["value"]))
    assert (await api.embed(key)).status_code == 200
    for model in (CHAT, "gpt-4o-mini"):
        refused = await api.complete(key, model=model)
        assert refused.status_code == 403
        check_error(
            refused.json(), type="permission_denied", code="model_not_allowed", param="model"
        )
        assert f"'{model}'" in refused.json()["error"]["message"]
        assert (await api.client.get(f"/v1/models/{model}", headers=key)).status_code == 403
    listed = (await api.client.get("/v1/models", headers=key)).json()["data"]
    assert [EMBEDDING] == [model["id"] for model in listed]
    await api.admin.accounts.update("lab", models=[CHAT])
    api.services.authenticator.forget_user("ada")
    models = (await api.client.get("/v1/models", auth=auth("ada"))).json()["data"]
    assert {CHAT, "gpt-4o-mini"} == {model["id"] for model in models}
    other = bearer(str((await make_key(api, "bob"))["value"]))
    assert (await api.embed(other)).status_code == 403


async def test_a_used_up_budget_is_an_insufficient_quota(api: Api) -> None:
    """Said not to be retried; another month, or a higher budget, serves again."""
    key = bearer(str((await make_key(api, "bob"))["value"]))
    used = (await api.embed(key)).json()["usage"]["total_tokens"]
    await api.admin.accounts.update("lab", monthly_tokens=2 * used)
    fresh = bearer(str((await make_key(api, "bob"))["value"]))
    assert (await api.embed(fresh)).status_code == 200
    refused = await api.embed(fresh)
    assert refused.status_code == 429
    check_error(refused.json(), type="insufficient_quota", code="insufficient_quota", param=None)
    assert refused.headers["x-should-retry"] == "false"
    assert f"Limit {2 * used} tokens, Used {2 * used}" in refused.json()["error"]["message"]
    await api.admin.accounts.update("lab", monthly_tokens=None)
    latest = bearer(str((await make_key(api, "bob"))["value"]))
    assert (await api.embed(latest)).status_code == 200


async def test_sessions_are_listed_and_ended(api: Api) -> None:
    """One's own alone; the current one is marked, and survives ending the others."""
    cookies = []
    for agent in ("firefox", "curl"):
        login = await api.client.post(
            "/v1/auth/login", auth=auth("bob"), headers={"User-Agent": agent}
        )
        cookies.append({"Cookie": f"omai_session={login.cookies['omai_session']}"})
        api.client.cookies.clear()
    path = "/v1/account/sessions"
    sessions = (await api.client.get(path, headers=cookies[1])).json()["data"]
    assert {("firefox", False), ("curl", True)} == {
        (session["user_agent"], session["current"]) for session in sessions
    }
    assert {"127.0.0.1"} == {session["source"] for session in sessions}
    first = next(session["id"] for session in sessions if not session["current"])
    assert (await api.client.delete(f"{path}/{first}", auth=auth("eve"))).status_code == 404
    assert (await api.client.delete(f"{path}/{first}", headers=cookies[1])).status_code == 200
    assert (await api.client.get("/v1/models", headers=cookies[0])).status_code == 401
    await api.client.post("/v1/auth/login", auth=auth("bob"))
    api.client.cookies.clear()
    assert (await api.client.delete(path, headers=cookies[1])).json()["count"] == 1
    assert (await api.client.get("/v1/models", headers=cookies[1])).status_code == 200


async def test_a_changed_password_renews_the_session_and_ends_the_others(api: Api) -> None:
    """Only who knows the old one may; a stolen cookie is worth nothing afterwards."""
    stolen = (await api.client.post("/v1/auth/login", auth=auth("bob"))).cookies["omai_session"]
    body = {"current_password": "wrong horse", "new_password": "battery staple"}
    refused = await api.client.post("/v1/account/password", json=body)
    assert refused.status_code == 401
    body["current_password"] = PASSWORD
    short = await api.client.post("/v1/account/password", json={**body, "new_password": "short"})
    assert (short.status_code, short.json()["error"]["param"]) == (400, "new_password")
    assert (await api.client.post("/v1/account/password", json=body)).status_code == 200
    renewed = api.client.cookies["omai_session"]
    assert renewed != stolen
    assert (await api.client.get("/v1/models")).status_code == 200
    api.client.cookies.clear()
    headers = {"Cookie": f"omai_session={stolen}"}
    assert (await api.client.get("/v1/models", headers=headers)).status_code == 401
    assert (await api.client.get("/v1/models", auth=auth("bob"))).status_code == 401
    new = auth("bob", "battery staple")
    assert (await api.client.get("/v1/models", auth=new)).status_code == 200


async def test_nobody_comes_by_a_key_that_administers(api: Api) -> None:
    """An owner neither sees nor rotates it; an administrator does."""
    await api.admin.users.create("root", PASSWORD, account="lab", role="admin")
    body = {"account": "lab", "role": "admin"}
    made = (await api.client.post("/v1/admin/keys", auth=auth("root"), json=body)).json()
    path = f"/v1/account/keys/{made['id']}"
    for user, status in (("ada", 404), ("bob", 404), ("root", 200)):
        assert status == (await api.client.get(path, auth=auth(user))).status_code
        rotated = await api.client.post(f"{path}/rotate", auth=auth(user))
        assert status == rotated.status_code
        listed = (await api.client.get("/v1/account/keys", auth=auth(user))).json()["data"]
        assert (made["id"] in [key["id"] for key in listed]) == (status == 200)


async def test_names_of_one_model_may_differ_between_the_lists(api: Api) -> None:
    """The account's has the model, the key's its alias."""
    await api.admin.accounts.update("lab", models=[CHAT])
    key = bearer(str((await make_key(api, "bob", models=["gpt-4o-mini"]))["value"]))
    for model in (CHAT, "gpt-4o-mini"):
        expected = 200 if model == "gpt-4o-mini" else 403
        assert expected == (await api.complete(key, model=model)).status_code


@pytest.mark.parametrize("path", ["", "/sessions", "/keys/x"])
async def test_an_unknown_query_is_refused(api: Api, path: str) -> None:
    """A misspelt wish does not pass unseen."""
    response = await api.client.get(f"/v1/account{path}?lmit=1", auth=auth("ada"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "lmit")
