from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import select

from omai_ray.errors import InvalidRequest, NotFound, Overloaded
from omai_ray.identity.administration import Administration
from omai_ray.identity.registry import Registry
from omai_ray.store import Store
from omai_ray.store.tables import users


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1025])
async def test_a_bad_password_is_refused(admin: Administration, password: str) -> None:
    """Nothing is created, and the message does not repeat it."""
    with pytest.raises(InvalidRequest, match="expected 8 to 1024 characters") as caught:
        await admin.users.create("ada", password, tier="basic")

    assert not password or password not in caught.value.message
    assert [] == (await admin.accounts.list()).items


async def test_a_user_comes_with_an_account_of_the_same_name(
    admin: Administration, store: Store
) -> None:
    """They own it; the password is stored hashed."""
    user = await admin.users.create("ada", "correct horse", tier="pro")
    account = await admin.accounts.get("ada")

    assert (account.id, "owner", "pro") == (user.account_id, user.role, account.tier)
    assert [user] == (await admin.users.list()).items
    assert user == await admin.users.get("ada") == await admin.users.get(user.id)
    assert "argon2id" not in repr(user)
    async with store.reading() as connection:
        stored = await connection.scalar(select(users.c.password_hash))
    assert str(stored).startswith("$argon2id$")


async def test_a_user_may_join_an_account(admin: Administration) -> None:
    """As a member, unless another role is given."""
    account = await admin.accounts.create("lab", "basic")
    ada = await admin.users.create("ada", "correct horse", account="lab")
    bob = await admin.users.create("bob", "correct horse", account=account.id, role="owner")

    assert [("member", account.id), ("owner", account.id)] == [
        (user.role, user.account_id) for user in (ada, bob)
    ]
    assert {ada, bob} == set((await admin.users.list("lab")).items)
    await admin.users.create("eve", "correct horse", tier="basic")
    assert 2 == len((await admin.users.list("lab")).items)


async def test_a_user_has_either_an_account_or_a_tier(admin: Administration) -> None:
    """Neither, both, or an account that is not there: nothing is created."""
    await admin.accounts.create("lab", "basic")
    for places in ({}, {"account": "lab", "tier": "basic"}):
        with pytest.raises(InvalidRequest, match="either 'account'"):
            await admin.users.create("ada", "correct horse", **places)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="no account 'nosuch'"):
        await admin.users.create("ada", "correct horse", account="nosuch")
    assert [] == (await admin.users.list()).items


async def test_a_user_whose_name_is_taken_is_not_created(admin: Administration) -> None:
    """All or nothing."""
    await admin.accounts.create("ada", "basic")
    with pytest.raises(InvalidRequest, match="The user or account 'ada' already exists"):
        await admin.users.create("ada", "correct horse", tier="basic")

    assert [] == (await admin.users.list()).items


async def test_an_unknown_role_is_refused(admin: Administration) -> None:
    """The message lists the known ones."""
    await admin.users.create("ada", "correct horse", tier="basic")
    for changing in (
        admin.users.create("bob", "correct horse", tier="basic", role="king"),  # type: ignore[arg-type]
        admin.users.update("ada", role="king"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest, match="owner, member, admin"):
            await changing


async def test_only_a_known_user_can_be_changed(admin: Administration) -> None:
    """The rest of it is tried where logins are."""
    for changing in (
        admin.users.update("ada", password="correct horse"),
        admin.users.delete("ada"),
        admin.users.get("ada"),
    ):
        with pytest.raises(NotFound, match="There is no user 'ada'"):
            await changing


async def test_a_deleted_users_keys_stay(admin: Administration) -> None:
    """They are the account's; the name is free again, the account's is not."""
    user = await admin.users.create("ada", "correct horse", tier="basic")
    key, _ = await admin.keys.create("ada", created_by=user.id)
    assert user == await admin.users.delete("ada")

    assert [] == (await admin.users.list()).items
    assert key == await admin.keys.get(key.id)
    await admin.users.create("ada", "correct horse", account="ada")


async def test_the_last_administrator_stays(admin: Administration) -> None:
    """Nobody could make another."""
    assert not await admin.users.has_administrator()
    await admin.users.create("root", "correct horse", tier="basic", role="admin")
    assert await admin.users.has_administrator()
    for changing in (admin.users.delete("root"), admin.users.update("root", role="owner")):
        with pytest.raises(InvalidRequest, match="Nobody could administer"):
            await changing
    await admin.users.create("toor", "correct horse", tier="basic", role="admin")
    assert "owner" == (await admin.users.update("root", role="owner")).role


async def test_administrators_who_leave_at_once_do_not_both(
    admin: Administration, registry: Registry, database_url: str
) -> None:
    """One of two simultaneous demotions is refused, from whatever process it comes."""
    for name in ("root", "toor"):
        await admin.users.create(name, "correct horse", tier="basic", role="admin")
    other = await Store.open(database_url)
    elsewhere = Administration(replace(registry, store=other))
    outcomes = await asyncio.gather(
        admin.users.update("root", role="member"),
        elsewhere.users.update("toor", role="member"),
        return_exceptions=True,
    )
    await other.close()

    refused = (InvalidRequest, Overloaded)  # SQLite: the other holds the lock
    assert 1 == sum(isinstance(outcome, refused) for outcome in outcomes)
    assert await admin.users.has_administrator()


async def test_the_last_administrators_account_is_not_suspended(admin: Administration) -> None:
    """Nobody could make it active again over HTTP."""
    root = await admin.users.create("root", "correct horse", tier="basic", role="admin")
    with pytest.raises(InvalidRequest, match="Nobody could administer"):
        await admin.accounts.update("root", status="suspended")
    await admin.users.create("toor", "correct horse", tier="basic", role="admin")
    await admin.accounts.update("root", status="suspended")
    with pytest.raises(InvalidRequest, match="Nobody could administer"):
        await admin.users.delete("toor")
    assert root


@pytest.mark.parametrize("leaving", ["demoted", "deleted"])
async def test_who_administers_no_longer_loses_the_keys_made_for_it(
    admin: Administration, leaving: str
) -> None:
    """The other keys that they made stay."""
    for name in ("root", "toor"):
        await admin.users.create(name, "correct horse", tier="basic", role="admin")
    user = await admin.users.get("root")
    power, _ = await admin.keys.create("root", role="admin", created_by=user.id)
    plain, _ = await admin.keys.create("root", created_by=user.id)
    if leaving == "demoted":
        await admin.users.update("root", role="member")
    else:
        await admin.users.delete("root")

    assert (await admin.keys.get(power.id)).revoked_at is not None
    assert (await admin.keys.get(plain.id)).revoked_at is None
