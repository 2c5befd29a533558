from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from omai_ray.errors import InvalidRequest, NotFound
from omai_ray.identity.accounts import Accounts
from omai_ray.store import Store
from omai_ray.store.tables import api_keys, users


async def test_an_account_is_found_by_name_and_by_id(accounts: Accounts, clock: Any) -> None:
    """One without a name is called by its id."""
    ada = await accounts.create_account("ada", "basic")
    nameless = await accounts.create_account(None, "pro")

    assert ("basic", "active", clock.now_s) == (ada.tier, ada.status, ada.created)
    assert ada.id.startswith("acct_")
    assert ada == await accounts.get_account("ada") == await accounts.get_account(ada.id)
    assert nameless.id == nameless.name
    assert [nameless, ada] == await accounts.list_accounts()


async def test_a_name_is_taken_once(accounts: Accounts) -> None:
    """Also when two ask for it at the same time."""
    outcomes = await asyncio.gather(
        *(accounts.create_account("ada", "basic") for _ in range(4)), return_exceptions=True
    )
    errors = [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)]

    assert ["The account 'ada' already exists."] * 3 == [error.message for error in errors]
    assert {("name", "already_exists")} == {(error.param, error.code) for error in errors}


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "-a", "a:b", "a" * 65, "acct_x", "näme", "a\n", "a\0b", "../etc", "\u0661"],
)
async def test_a_bad_name_is_refused(accounts: Accounts, name: str) -> None:
    """The message says what a name is."""
    for creating in (
        accounts.create_account(name, "basic"),
        accounts.create_user(name, "long enough", "basic"),
    ):
        with pytest.raises(InvalidRequest, match="1 to 64 letters") as caught:
            await creating
        assert "name" == caught.value.param
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["a", "ada@example.com", "Team-1_x.y+z", "0" * 64])
async def test_ordinary_names_are_accepted(accounts: Accounts, name: str) -> None:
    """Addresses too."""
    assert name == (await accounts.create_account(name, "basic")).name


async def test_an_unknown_tier_is_refused(accounts: Accounts) -> None:
    """The message lists the known ones."""
    await accounts.create_account("ada", "basic")
    for changing in (
        accounts.create_account("bob", "gold"),
        accounts.create_user("bob", "long enough", "gold"),
        accounts.set_tier("ada", "gold"),
    ):
        with pytest.raises(InvalidRequest, match=r"no tier 'gold' \(there are: basic, pro\)"):
            await changing


@pytest.mark.parametrize("password", ["", "1234567", "x" * 1025])
async def test_a_bad_password_is_refused(accounts: Accounts, password: str) -> None:
    """Nothing is created, and the message does not repeat it."""
    with pytest.raises(InvalidRequest, match="expected 8 to 1024 characters") as caught:
        await accounts.create_user("ada", password, "basic")

    assert not password or password not in caught.value.message
    assert [] == await accounts.list_accounts()


async def test_a_user_comes_with_an_account_of_the_same_name(
    accounts: Accounts, store: Store
) -> None:
    """They own it; the password is stored hashed."""
    user = await accounts.create_user("ada", "correct horse", "pro")
    account = await accounts.get_account("ada")

    assert (account.id, "owner", "pro") == (user.account_id, user.role, account.tier)
    assert [user] == await accounts.list_users()
    assert "argon2id" not in repr(user)
    async with store.reading() as connection:
        stored = await connection.scalar(select(users.c.password_hash))
    assert str(stored).startswith("$argon2id$")


async def test_a_user_whose_account_name_is_taken_is_not_created(accounts: Accounts) -> None:
    """All or nothing."""
    await accounts.create_account("ada", "basic")
    with pytest.raises(InvalidRequest, match="The user or account 'ada' already exists"):
        await accounts.create_user("ada", "correct horse", "basic")

    assert [] == await accounts.list_users()


async def test_an_unknown_role_is_refused(accounts: Accounts) -> None:
    """The message lists the known ones."""
    with pytest.raises(InvalidRequest, match="owner, member, admin"):
        await accounts.create_user("ada", "correct horse", "basic", "king")  # type: ignore[arg-type]


async def test_a_key_is_shown_once_and_stored_as_a_mac(
    accounts: Accounts, store: Store, clock: Any
) -> None:
    """What is stored opens nothing."""
    await accounts.create_account("ada", "basic")
    record, text = await accounts.create_key("ada", "laptop", clock.now_s + 60)
    secret = text.split("_")[1]
    async with store.reading() as connection:
        (row,) = (await connection.execute(select(api_keys))).all()

    assert secret not in str(row)
    assert secret not in repr(record)
    assert (text[-4:], "laptop", clock.now_s + 60) == (
        record.last_four,
        record.name,
        record.expires,
    )
    assert [record] == await accounts.list_keys() == await accounts.list_keys("ada")


async def test_bad_keys_are_refused(accounts: Accounts, clock: Any) -> None:
    """No such account, an expiry that has come, a name that is none."""
    await accounts.create_account("ada", "basic")
    with pytest.raises(NotFound, match="There is no account 'bob'"):
        await accounts.create_key("bob")
    for expires in (clock.now_s, float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="must lie in the future"):
            await accounts.create_key("ada", expires=expires)
    for name in ("", "x" * 65, "a\nb"):
        with pytest.raises(InvalidRequest, match="1 to 64 printable"):
            await accounts.create_key("ada", name)


async def test_a_key_is_revoked_by_its_id_or_itself_and_once(
    accounts: Accounts, clock: Any
) -> None:
    """The time of the first revocation stays."""
    await accounts.create_account("ada", "basic")
    record, text = await accounts.create_key("ada")
    revoked = await accounts.revoke_key(record.id)
    first_s = clock.now_s
    clock.now_s += 10
    again = await accounts.revoke_key(text)

    assert first_s == revoked.revoked_at == again.revoked_at


async def test_only_ones_own_key_can_be_revoked(accounts: Accounts) -> None:
    """Another account's key is not there, and a whole key is not repeated in the error."""
    await accounts.create_account("ada", "basic")
    other = await accounts.create_account("bob", "basic")
    record, text = await accounts.create_key("ada")
    with pytest.raises(NotFound) as caught:
        await accounts.revoke_key(text, account_id=other.id)

    assert text not in caught.value.message
    assert (await accounts.list_keys())[0].revoked_at is None
    with pytest.raises(NotFound, match="There is no key 'nosuch'"):
        await accounts.revoke_key("nosuch")
    assert [] == await accounts.list_keys("bob")
    assert record.id


async def test_tier_and_status_can_be_changed(accounts: Accounts) -> None:
    """By name or id."""
    account = await accounts.create_account("ada", "basic")

    assert "pro" == (await accounts.set_tier("ada", "pro")).tier
    assert "suspended" == (await accounts.set_status(account.id, "suspended")).status
    with pytest.raises(InvalidRequest, match="'active' or 'suspended'"):
        await accounts.set_status("ada", "gone")  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await accounts.set_tier("bob", "pro")


async def test_only_a_known_users_password_can_be_changed(accounts: Accounts) -> None:
    """The rest of it is tried where logins are."""
    with pytest.raises(NotFound, match="There is no user 'ada'"):
        await accounts.set_password("ada", "correct horse")
