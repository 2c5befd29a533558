from __future__ import annotations

import asyncio
from typing import Any

import pytest

from omai_ray.errors import InvalidRequest, NotFound
from omai_ray.identity.administration import Administration


async def test_an_account_is_found_by_name_and_by_id(admin: Administration, clock: Any) -> None:
    """One without a name is called by its id."""
    ada = await admin.accounts.create("ada", "basic")
    clock.now_s += 1
    nameless = await admin.accounts.create(None, "pro")

    assert ("basic", "active", clock.now_s - 1) == (ada.tier, ada.status, ada.created)
    assert (None, None) == (ada.monthly_tokens, ada.models)
    assert ada.id.startswith("acct_")
    assert ada == await admin.accounts.get("ada") == await admin.accounts.get(ada.id)
    assert nameless.id == nameless.name
    assert [ada, nameless] == (await admin.accounts.list()).items


async def test_a_name_is_taken_once(admin: Administration) -> None:
    """Also when several ask for it at the same time."""
    outcomes = await asyncio.gather(
        *(admin.accounts.create("ada", "basic") for _ in range(4)), return_exceptions=True
    )
    errors = [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)]

    assert ["The account 'ada' already exists."] * 3 == [error.message for error in errors]
    assert {("name", "already_exists")} == {(error.param, error.code) for error in errors}


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "-a", "a:b", "a" * 65, "acct_x", "user_x", "näme", "a\n", "a\0b", "../etc"],
)
async def test_a_bad_name_is_refused(admin: Administration, name: str) -> None:
    """The message says what a name is."""
    for creating in (
        admin.accounts.create(name, "basic"),
        admin.users.create(name, "long enough", tier="basic"),
    ):
        with pytest.raises(InvalidRequest, match="1 to 64 letters") as caught:
            await creating
        assert "name" == caught.value.param
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["a", "ada@example.com", "Team-1_x.y+z", "0" * 64])
async def test_ordinary_names_are_accepted(admin: Administration, name: str) -> None:
    """Addresses too."""
    assert name == (await admin.accounts.create(name, "basic")).name


async def test_an_unknown_tier_is_refused(admin: Administration) -> None:
    """The message lists the known ones."""
    await admin.accounts.create("ada", "basic")
    for changing in (
        admin.accounts.create("bob", "gold"),
        admin.users.create("bob", "long enough", tier="gold"),
        admin.accounts.update("ada", tier="gold"),
    ):
        with pytest.raises(InvalidRequest, match=r"no tier 'gold' \(there are: basic, pro\)"):
            await changing


async def test_what_is_given_is_changed_and_the_rest_stays(admin: Administration) -> None:
    """By name or id; a bound can be taken away again."""
    account = await admin.accounts.create("ada", "basic", monthly_tokens=1000, models=["gpt"])
    changed = await admin.accounts.update("ada", tier="pro", status="suspended")
    assert ("pro", "suspended", 1000, ("gpt",)) == (
        changed.tier,
        changed.status,
        changed.monthly_tokens,
        changed.models,
    )
    freed = await admin.accounts.update(account.id, name="eve", monthly_tokens=None, models=None)
    assert ("eve", "pro", None, None) == (
        freed.name,
        freed.tier,
        freed.monthly_tokens,
        freed.models,
    )
    assert freed == await admin.accounts.update("eve")
    with pytest.raises(NotFound, match="There is no account 'ada'"):
        await admin.accounts.update("ada", tier="pro")


async def test_a_new_name_must_be_free(admin: Administration) -> None:
    """As that of a new account."""
    await admin.accounts.create("ada", "basic")
    await admin.accounts.create("bob", "basic")
    with pytest.raises(InvalidRequest, match="'bob' already exists"):
        await admin.accounts.update("ada", name="bob")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "gone"}, "'active' or 'suspended'"),
        ({"monthly_tokens": 0}, "Invalid 'monthly_tokens': expected 1 to"),
        ({"monthly_tokens": 10**16}, "Invalid 'monthly_tokens': expected 1 to"),
        ({"models": []}, "Invalid 'models': expected 1 to 1000 names, got 0"),
        ({"models": ["gpt", "gtp"]}, r"no model 'gtp' is served \(served: gpt, ada-002\)"),
        ({"name": "a b"}, "1 to 64 letters"),
    ],
)
async def test_a_change_that_cannot_be_is_refused(
    admin: Administration, changes: dict[str, Any], words: str
) -> None:
    """The message names the field and what it may be; nothing is changed."""
    account = await admin.accounts.create("ada", "basic")
    with pytest.raises(InvalidRequest, match=words):
        await admin.accounts.update("ada", **changes)
    assert account == await admin.accounts.get("ada")


async def test_lists_are_read_a_page_at_a_time(admin: Administration, clock: Any) -> None:
    """Oldest first, each entry once, those of one instant included."""
    made = []
    for number in range(7):
        clock.now_s += number % 2
        made.append(await admin.accounts.create(f"a{number}", "basic"))
    seen, after, sizes = [], None, []
    while True:
        page = await admin.accounts.list(after, limit=3)
        seen += page.items
        sizes.append(len(page.items))
        if not page.has_more:
            break
        after = page.items[-1].id

    assert [3, 3, 1] == sizes
    assert {account.id for account in made} == {account.id for account in seen}
    assert sorted(seen, key=lambda a: (a.created, a.id)) == seen
    with pytest.raises(InvalidRequest, match="Invalid 'after'"):
        await admin.accounts.list("acct_nobody")
