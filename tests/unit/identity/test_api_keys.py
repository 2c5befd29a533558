from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from omai_ray.errors import InvalidRequest, NotFound, Overloaded
from omai_ray.identity import keys as key_format
from omai_ray.identity.administration import Administration
from omai_ray.identity.api_keys import Within
from omai_ray.identity.registry import Registry
from omai_ray.store import Store
from omai_ray.store.tables import api_keys

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
async def ada(admin: Administration) -> str:
    """Create the account `ada` and return its id."""
    return (await admin.accounts.create("ada", "basic")).id


async def test_a_key_is_shown_once_and_stored_as_a_mac(
    admin: Administration, store: Store, clock: Any
) -> None:
    """What is stored opens nothing."""
    record, text = await admin.keys.create("ada", name="laptop", expires=clock.now_s + 60)
    secret = text.split("_")[1]
    async with store.reading() as connection:
        (row,) = (await connection.execute(select(api_keys))).all()

    assert secret not in str(row)
    assert secret not in repr(record)
    assert (text[-4:], "laptop", clock.now_s + 60, "member") == (
        record.last_four,
        record.name,
        record.expires,
        record.role,
    )
    assert [record] == (await admin.keys.list()).items == (await admin.keys.list("ada")).items
    assert record == await admin.keys.get(record.id) == await admin.keys.get(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, "1 to 64 printable"),
        ({"name": "x" * 65}, "1 to 64 printable"),
        ({"name": "a\nb"}, "1 to 64 printable"),
        ({"expires": 1_700_000_000.0}, "must lie in the future"),
        ({"expires": float("nan")}, "must lie in the future"),
        ({"expires": float("inf")}, "must lie in the future"),
        ({"expires": 1e11}, "at most 100 years ahead"),
        ({"requests_per_minute": 0}, "Invalid 'requests_per_minute'"),
        ({"tokens_per_minute": -1}, "Invalid 'tokens_per_minute'"),
        ({"models": ["nosuch"]}, "no model 'nosuch'"),
        ({"models": []}, "Invalid 'models'"),
    ],
)
async def test_bad_values_are_refused(
    admin: Administration, values: dict[str, Any], words: str
) -> None:
    """By name, whether a key is made or changed."""
    key, _ = await admin.keys.create("ada")
    for changing in (admin.keys.create("ada", **values), admin.keys.update(key.id, **values)):
        with pytest.raises(InvalidRequest, match=words):
            await changing
    assert [key] == (await admin.keys.list()).items


async def test_a_key_needs_an_account_and_a_role_of_a_key(admin: Administration) -> None:
    """An owner logs in."""
    with pytest.raises(NotFound, match="There is no account 'bob'"):
        await admin.keys.create("bob")
    with pytest.raises(InvalidRequest, match="expected one of member, admin, got 'owner'"):
        await admin.keys.create("ada", role="owner")


async def test_what_is_given_is_changed_and_the_rest_stays(admin: Administration) -> None:
    """A bound can be taken away again."""
    key, _ = await admin.keys.create("ada", requests_per_minute=5, models=["gpt"])
    changed = await admin.keys.update(key.id, name="server", tokens_per_minute=100)
    assert ("server", 5, 100, ("gpt",)) == (
        changed.name,
        changed.requests_per_minute,
        changed.tokens_per_minute,
        changed.models,
    )
    freed = await admin.keys.update(key.id, requests_per_minute=None, models=None)
    assert (None, 100, None) == (
        freed.requests_per_minute,
        freed.tokens_per_minute,
        freed.models,
    )
    assert key.mac == freed.mac


async def test_a_key_is_revoked_by_its_id_or_itself_and_once(
    admin: Administration, clock: Any
) -> None:
    """The time of the first revocation stays."""
    record, text = await admin.keys.create("ada")
    revoked = await admin.keys.revoke(record.id)
    first_s = clock.now_s
    clock.now_s += 10
    again = await admin.keys.revoke(text)

    assert first_s == revoked.revoked_at == again.revoked_at
    assert ["key.revoke", "key.create"] == [
        entry.action for entry in (await admin.audit.list(target=record.id)).items
    ]


async def test_anothers_key_is_not_there(admin: Administration, ada: str) -> None:
    """Whatever is asked of it, and a whole key is not repeated in the error."""
    other = await admin.accounts.create("bob", "basic")
    record, text = await admin.keys.create("ada", created_by="user_1")
    for within in (Within(other.id), Within(ada, "user_2"), Within(created_by="user_2")):
        for asking in (
            admin.keys.get(text, within),
            admin.keys.update(text, within, name="mine"),
            admin.keys.rotate(text, within),
            admin.keys.revoke(text, within),
        ):
            with pytest.raises(NotFound) as caught:
                await asking
            assert text not in caught.value.message
        assert [] == (await admin.keys.list(within=within)).items

    assert record == await admin.keys.get(text, Within(ada, "user_1"))
    with pytest.raises(NotFound, match="There is no key 'nosuch'"):
        await admin.keys.revoke("nosuch")


async def test_a_rotated_key_works_on_for_its_grace(admin: Administration, clock: Any) -> None:
    """Its replacement may do what it might; both are told apart by their ids."""
    old, text = await admin.keys.create(
        "ada", name="server", role="admin", requests_per_minute=5, models=["gpt"]
    )
    new, other = await admin.keys.rotate(old.id, grace_s=DAY_S)
    left = await admin.keys.get(old.id)

    assert text != other
    assert key_format.parse(other)
    assert (old.name, old.role, old.requests_per_minute, old.models, old.expires) == (
        new.name,
        new.role,
        new.requests_per_minute,
        new.models,
        new.expires,
    )
    assert (clock.now_s + DAY_S, new.id) == (left.expires, left.replaced_by)


async def test_a_rotation_never_prolongs_a_key(admin: Administration, clock: Any) -> None:
    """It ends when it would have, and so does its replacement."""
    key, _ = await admin.keys.create("ada", expires=clock.now_s + 60)
    new, _ = await admin.keys.rotate(key.id, grace_s=DAY_S)

    assert clock.now_s + 60 == new.expires == (await admin.keys.get(key.id)).expires


async def test_only_a_key_that_works_is_rotated_and_once(admin: Administration, clock: Any) -> None:
    """Revoked, expired and replaced ones are refused, as is a grace that cannot be."""
    revoked, _ = await admin.keys.create("ada")
    await admin.keys.revoke(revoked.id)
    expired, _ = await admin.keys.create("ada", expires=clock.now_s + 1)
    replaced, _ = await admin.keys.create("ada")
    new, _ = await admin.keys.rotate(replaced.id)
    clock.now_s += 1
    for key, words in (
        (revoked, "has been revoked"),
        (expired, "has expired"),
        (replaced, f"has been rotated already: {new.id} replaces it"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            await admin.keys.rotate(key.id)
    for grace_s in (-1.0, 91 * DAY_S, float("nan")):
        with pytest.raises(InvalidRequest, match="Invalid 'grace_seconds'"):
            await admin.keys.rotate(new.id, grace_s=grace_s)
    assert 4 == len((await admin.keys.list()).items)


async def test_simultaneous_rotations_make_one_key(
    admin: Administration, registry: Registry, database_url: str
) -> None:
    """The other is told that it has been done."""
    key, _ = await admin.keys.create("ada")
    other = await Store.open(database_url)
    elsewhere = Administration(replace(registry, store=other))
    outcomes = await asyncio.gather(
        admin.keys.rotate(key.id), elsewhere.keys.rotate(key.id), return_exceptions=True
    )
    await other.close()

    refused = (InvalidRequest, Overloaded)  # SQLite: the other holds the lock
    assert 1 == sum(isinstance(outcome, refused) for outcome in outcomes)
    assert 2 == len((await admin.keys.list()).items)


async def test_an_account_has_only_so_many_live_keys(
    admin: Administration, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked and expired ones do not count."""
    monkeypatch.setattr("omai_ray.identity.api_keys.MAX_KEYS", 2)
    first, _ = await admin.keys.create("ada")
    await admin.keys.create("ada", expires=clock.now_s + 10)
    with pytest.raises(InvalidRequest, match="has 2 live keys; the limit is 2"):
        await admin.keys.create("ada")
    await admin.keys.revoke(first.id)
    await admin.keys.create("ada")
    clock.now_s += 10
    await admin.keys.create("ada")


@pytest.mark.parametrize("reference", ["a\0b", "\ud800", "x" * 5000])
async def test_what_no_database_can_hold_is_not_there(
    admin: Administration, reference: str
) -> None:
    """PostgreSQL would fail at it."""
    for asking in (
        admin.keys.get(reference),
        admin.accounts.get(reference),
        admin.users.get(reference),
    ):
        with pytest.raises(NotFound):
            await asking
    with pytest.raises(InvalidRequest, match="Invalid 'after'"):
        await admin.keys.list(after=reference)
