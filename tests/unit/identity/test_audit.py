from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import DBAPIError

from omai_ray.errors import InvalidRequest, NotFound, OMAiError
from omai_ray.identity.actor import Actor
from omai_ray.identity.administration import Administration
from omai_ray.identity.registry import Registry
from omai_ray.store import AuditEntry, Store
from omai_ray.store.store import overloaded
from omai_ray.store.tables import audit
from omai_ray.telemetry.logs import request_id_var

ROOT = Actor("user_root", "root", "1.2.3.4")


def told(entry: AuditEntry) -> tuple[str, str, str | None, dict[str, Any] | None]:
    """Return what an entry says was done, and by whom."""
    return entry.actor, entry.action, entry.target, entry.details


async def test_every_change_has_its_entry(admin: Administration, clock: Any) -> None:
    """Who, what, to whom, from where, in which request; values that may be seen."""
    token = request_id_var.set("req_1")
    root = admin.acting(ROOT)
    account = await root.accounts.create("lab", "basic", models=["gpt"])
    await root.accounts.update("lab", tier="pro", monthly_tokens=5)
    user = await root.users.create("ada", "correct horse", account="lab")
    await root.users.update("ada", role="owner", password="battery staple")
    key, text = await root.keys.create("lab", name="laptop", models=["gpt"])
    await root.keys.update(key.id, name="server")
    new, _ = await root.keys.rotate(key.id, grace_s=60)
    await root.keys.revoke(key.id)
    await root.users.delete("ada")
    request_id_var.reset(token)
    entries = (await admin.audit.list()).items

    assert [
        ("account.create", account.id, {"name": "lab", "tier": "basic", "models": ["gpt"]}),
        ("account.update", account.id, {"tier": "pro", "monthly_tokens": 5}),
        ("user.create", user.id, {"name": "ada", "role": "member"}),
        ("user.update", user.id, {"role": "owner"}),
        ("user.password", user.id, None),
        ("key.create", key.id, {"name": "laptop", "role": "member", "models": ["gpt"]}),
        ("key.update", key.id, {"name": "server"}),
        ("key.rotate", key.id, {"replaced_by": new.id, "until": clock.now_s + 60}),
        ("key.revoke", key.id, {"name": "server"}),
        ("user.delete", user.id, {"name": "ada"}),
    ] == [told(entry)[1:] for entry in reversed(entries)]
    assert {("user_root", "root", "1.2.3.4", "req_1", "success", account.id)} == {
        (e.actor, e.actor_name, e.source, e.request_id, e.outcome, e.account_id) for e in entries
    }
    assert not any(secret in str(entries) for secret in (text.split("_")[1], "horse", "argon2"))


async def test_what_fails_has_no_entry(admin: Administration) -> None:
    """The entry is kept with the change, or neither is."""
    await admin.accounts.create("lab", "basic")
    for failing in (
        admin.accounts.create("lab", "basic"),
        admin.accounts.update("nosuch", tier="pro"),
        admin.keys.create("nosuch"),
        admin.users.create("lab", "correct horse", tier="basic"),
    ):
        with pytest.raises(OMAiError):
            await failing

    assert ["account.create"] == [entry.action for entry in (await admin.audit.list()).items]


async def test_nobody_can_change_or_remove_an_entry(
    admin: Administration, store: Store, database_url: str
) -> None:
    """The database itself refuses."""
    await admin.accounts.create("lab", "basic")
    replacing = insert(audit).values(
        id=1, at=0.0, actor="nobody", action="key.create", outcome="success"
    )
    statements = [update(audit).values(actor="nobody"), delete(audit), replacing]
    if "sqlite" in database_url:
        statements.append(replacing.prefix_with("OR REPLACE"))
    for statement in statements:
        with pytest.raises((DBAPIError, OMAiError)):
            async with store.writing() as connection:
                await connection.execute(statement)

    assert ["system"] == [entry.actor for entry in (await admin.audit.list()).items]


async def test_entries_are_found_by_what_they_say(admin: Administration) -> None:
    """Newest first, a page at a time."""
    root = admin.acting(ROOT)
    for number in range(5):
        await (root if number % 2 else admin).accounts.create(f"a{number}", "basic")
    account = await admin.accounts.get("a3")
    by_root = (await admin.audit.list(actor="user_root")).items
    assert ["a3", "a1"] == [(entry.details or {})["name"] for entry in by_root]
    (of_account,) = (await admin.audit.list(account_id=account.id)).items
    assert [of_account] == (await admin.audit.list(target=account.id)).items
    assert 5 == len((await admin.audit.list(action="account.create")).items)
    first = await admin.audit.list(limit=3)
    rest = await admin.audit.list(limit=3, after=str(first.items[-1].id))
    assert (3, True, 2, False) == (
        len(first.items),
        first.has_more,
        len(rest.items),
        rest.has_more,
    )
    for after in ("x", "-1", "9" * 30):
        with pytest.raises(InvalidRequest, match="Invalid 'after'"):
            await admin.audit.list(after=after)


async def test_a_note_is_written_behind_the_request(registry: Registry) -> None:
    """Several in one transaction."""
    log = registry.audit
    for number in range(20):
        log.note(log.entry(ROOT, "admin.access", f"/{number}", None, outcome="denied"))
    await log.close()

    assert [f"/{number}" for number in range(19, -1, -1)] == [
        entry.target for entry in (await log.list()).items
    ]


async def test_a_note_that_cannot_be_written_is_in_the_log(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, and memory is bounded."""

    def away(*_: Any) -> Any:
        raise overloaded()

    monkeypatch.setattr(Store, "writing", away)
    monkeypatch.setattr("omai_ray.identity.audit.MAX_WAITING", 2)
    log = registry.audit
    for number in range(3):
        log.note(log.entry(ROOT, "admin.access", f"/path{number}", None, outcome="denied"))
    await log.close()

    assert all(f"/path{number}" in caplog.text for number in range(3))


async def test_a_missing_thing_is_named(admin: Administration) -> None:
    """An unprintable or endless reference is not repeated."""
    for reference in ("a\nb", "x" * 1000):
        with pytest.raises(NotFound) as caught:
            await admin.accounts.get(reference)
        assert len(caught.value.message) < 80


async def test_the_same_refusal_is_written_once_a_minute(registry: Registry, clock: Any) -> None:
    """An entry stays for ever: nobody can fill the log by being refused."""
    log = registry.audit
    for number in range(300):
        log.note(log.entry(ROOT, "admin.access", f"/{number % 2}", None, outcome="denied"))
        clock.now_s += 1.0
    await log.close()

    assert 10 == len((await log.list()).items)


async def test_an_entry_that_cannot_be_kept_keeps_no_other_out(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """It alone goes to the process's log."""
    log = registry.audit
    for target in ("/a", None, "/b"):
        entry = log.entry(ROOT, "admin.access", target, None, outcome="denied")
        log.note({**entry, "outcome": None} if target is None else entry)
    await log.close()

    assert ["/b", "/a"] == [entry.target for entry in (await log.list()).items]
    assert "not in the audit log" in caplog.text
