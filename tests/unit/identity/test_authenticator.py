from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import event, select

from omai_ray.errors import (
    NotFound,
    OMAiError,
    Overloaded,
    PermissionDenied,
    RateLimited,
    Unauthorized,
)
from omai_ray.identity.actor import Actor
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.keys import compute_mac, generate
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.peppers import Peppers, add_version
from omai_ray.identity.principal import Principal
from omai_ray.identity.registry import Registry
from omai_ray.store import Store
from omai_ray.store.store import overloaded
from omai_ray.store.tables import api_keys

HERE = "1.2.3.4"


def bearer(token: str) -> tuple[bytes, bytes]:
    """Return the header that sends a key."""
    return b"authorization", f"Bearer {token}".encode()


def basic(username: str, password: str) -> tuple[bytes, bytes]:
    """Return the header that sends a password."""
    encoded = base64.b64encode(f"{username}:{password}".encode())
    return b"authorization", b"Basic " + encoded


def cookie(value: str) -> tuple[bytes, bytes]:
    """Return the header that sends a session."""
    return b"cookie", f"omai_session={value}".encode()


@pytest.fixture
async def key(admin: Administration) -> str:
    """Return a key of the new account `ada`, which has a user as well."""
    await admin.users.create("ada", "correct horse", tier="basic")
    return (await admin.keys.create("ada", name="laptop"))[1]


@pytest.fixture
def queries(store: Store) -> list[str]:
    """Return the statements that the store runs from now on."""
    statements: list[str] = []

    @event.listens_for(store._engine.sync_engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    return statements


@pytest.fixture
def hashed(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return what has been verified from now on: whether there was a user."""
    calls: list[bool] = []
    verify = passwords.verify

    async def counted(password_hash: str | None, password: str) -> bool:
        calls.append(password_hash is not None)
        return await verify(password_hash, password)

    monkeypatch.setattr(passwords, "verify", counted)
    return calls


async def failure(authenticator: Authenticator, *headers: tuple[bytes, bytes]) -> OMAiError:
    """Return the error that a call with these headers raises."""
    with pytest.raises(OMAiError) as caught:
        await authenticator.authenticate(headers, HERE)
    return caught.value


# Keys


async def test_a_key_authenticates_its_account(
    authenticator: Authenticator, admin: Administration, key: str
) -> None:
    """A key acts for the account, as a member."""
    principal = await authenticator.authenticate([bearer(key)], HERE)
    account = await admin.accounts.get("ada")

    assert principal == Principal(account.id, "ada", "basic", key_id=key[8:20], role="member")


async def test_a_key_may_be_the_password_of_basic(authenticator: Authenticator, key: str) -> None:
    """As OpenAI's own message offers."""
    assert (await authenticator.authenticate([basic("", key)], HERE)).key_id


async def test_no_credentials_are_asked_for(authenticator: Authenticator) -> None:
    """In OpenAI's words, with the header."""
    error = await failure(authenticator)

    assert error.message.startswith("You didn't provide an API key. You need to provide your API")
    assert (401, {"WWW-Authenticate": "Bearer"}) == (error.status, error.headers)


async def test_a_mistyped_key_costs_no_query(
    authenticator: Authenticator, key: str, queries: list[str]
) -> None:
    """Its checksum is wrong; the answer shows four characters of it."""
    error = await failure(authenticator, bearer(key[:-1] + ("A" if key[-1] != "A" else "B")))

    assert error.message.startswith(f"Incorrect API key provided: omai-sk-...{key[-4:-1]}")
    assert key.split("_")[1] not in error.message
    assert isinstance(error, Unauthorized)
    assert [] == queries


@pytest.mark.parametrize("token", ["x", "sk-1234567890", "omai-sk-", "ü", "a b"])
async def test_what_is_no_key_is_incorrect(authenticator: Authenticator, token: str) -> None:
    """And not repeated: it may be another service's."""
    assert "Incorrect API key provided." == (await failure(authenticator, bearer(token))).message


async def test_an_unknown_key_is_incorrect_until_it_is_created(
    authenticator: Authenticator, admin: Administration, store: Store, peppers: Peppers, key: str
) -> None:
    """Absence is not cached."""
    parsed, text = generate()
    error = await failure(authenticator, bearer(text))
    assert f"Incorrect API key provided: omai-sk-...{text[-4:]}" == error.message

    (row,) = (await admin.keys.list("ada")).items
    values = {column.name: getattr(row, column.name) for column in api_keys.c}
    values |= {"id": parsed.key_id, "mac": compute_mac(parsed, peppers.current)}
    async with store.writing() as connection:
        await connection.execute(api_keys.insert().values(**values))

    assert parsed.key_id == (await authenticator.authenticate([bearer(text)], HERE)).key_id


async def test_a_right_id_with_another_secret_is_incorrect(
    authenticator: Authenticator, store: Store, key: str
) -> None:
    """The mac decides, also when the row is cached."""
    await authenticator.authenticate([bearer(key)], HERE)
    _, other = generate()
    async with store.writing() as connection:
        await connection.execute(api_keys.update().values(id=other[8:20]))

    assert "Incorrect" in (await failure(authenticator, bearer(other))).message


async def test_a_revoked_key_stops_within_five_seconds(
    authenticator: Authenticator, admin: Administration, key: str, clock: Any
) -> None:
    """And at once in the process that is told."""
    await authenticator.authenticate([bearer(key)], HERE)
    await admin.keys.revoke(key)
    clock.now_s += 5.0
    error = await failure(authenticator, bearer(key))

    assert (401, "The API key 'laptop' has been revoked.") == (error.status, error.message)


async def test_a_revocation_counts_at_once_where_it_is_told(
    authenticator: Authenticator, admin: Administration, key: str
) -> None:
    """No need to wait for one's own cache."""
    await authenticator.authenticate([bearer(key)], HERE)
    authenticator.forget_key((await admin.keys.revoke(key)).id)

    assert "revoked" in (await failure(authenticator, bearer(key))).message


async def test_a_key_expires_even_while_cached(
    authenticator: Authenticator, admin: Administration, key: str, clock: Any
) -> None:
    """To the second."""
    _, short = await admin.keys.create("ada", name="short", expires=clock.now_s + 2.0)
    await authenticator.authenticate([bearer(short)], HERE)
    clock.now_s += 2.0

    assert (
        "The API key 'short' has expired." == (await failure(authenticator, bearer(short))).message
    )


async def test_a_suspended_account_is_denied_by_every_way(
    authenticator: Authenticator, admin: Administration, key: str
) -> None:
    """The caller is known: 403, not 401."""
    _, value = await authenticator.login([basic("ada", "correct horse")], None, HERE)
    await admin.accounts.update("ada", status="suspended")
    authenticator._users.forget("ada")
    for header in (bearer(key), basic("ada", "correct horse"), cookie(value)):
        error = await failure(authenticator, header)
        assert isinstance(error, PermissionDenied)
        assert "The account 'ada' is suspended." == error.message


async def test_simultaneous_calls_with_one_key_are_one_query(
    authenticator: Authenticator, key: str, queries: list[str]
) -> None:
    """A client that starts with a hundred requests costs one."""
    calls = (authenticator.authenticate([bearer(key)], HERE) for _ in range(100))
    principals = await asyncio.gather(*calls)

    assert 1 == len(set(principals))
    assert 1 == len([statement for statement in queries if "api_keys.id" in statement[:40]])


async def test_an_outage_is_bridged_for_verified_keys_only(
    authenticator: Authenticator,
    admin: Administration,
    key: str,
    clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others are told to come back: neither let in nor refused."""
    _, other = await admin.keys.create("ada")
    await authenticator.authenticate([bearer(key)], HERE)

    def away(*_: Any) -> Any:
        raise overloaded()

    monkeypatch.setattr(Store, "reading", away)
    monkeypatch.setattr(Store, "writing", away)
    clock.now_s += 59.0
    assert await authenticator.authenticate([bearer(key)], HERE)
    error = await failure(authenticator, bearer(other))
    assert isinstance(error, Overloaded)
    assert "1" == error.headers["Retry-After"]
    clock.now_s += 1.0
    assert isinstance(await failure(authenticator, bearer(key)), Overloaded)


async def test_last_use_is_written_once_a_minute_behind_the_request(
    authenticator: Authenticator, store: Store, key: str, clock: Any, queries: list[str]
) -> None:
    """However often the key is used."""
    started_s = clock.now_s
    for _ in range(50):
        await authenticator.authenticate([bearer(key)], HERE)
        clock.now_s += 1.0
    await authenticator._key_touches.close()
    assert 1 == len([statement for statement in queries if statement.startswith("UPDATE")])
    async with store.reading() as connection:
        assert started_s == await connection.scalar(select(api_keys.c.last_used))

    clock.now_s += 10.0
    await authenticator.authenticate([bearer(key)], HERE)
    await authenticator._key_touches.close()
    async with store.reading() as connection:
        assert started_s + 60.0 == await connection.scalar(select(api_keys.c.last_used))


async def test_a_last_use_that_cannot_be_written_disturbs_nobody(
    authenticator: Authenticator, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is only logged."""

    def away(*_: Any) -> Any:
        raise overloaded()

    monkeypatch.setattr(Store, "writing", away)
    await authenticator.authenticate([bearer(key)], HERE)
    await authenticator._key_touches.close()


# Passwords


async def test_a_password_works_on_every_call_and_is_hashed_once_a_minute(
    authenticator: Authenticator, key: str, clock: Any, hashed: list[bool]
) -> None:
    """`requests` sends Basic each time."""
    for _ in range(20):
        principal = await authenticator.authenticate([basic("ada", "correct horse")], HERE)
    assert ("owner", None) == (principal.role, principal.key_id)
    assert principal.user_id
    assert [True] == hashed
    clock.now_s += 60.0
    await authenticator.authenticate([basic("ada", "correct horse")], HERE)
    assert [True, True] == hashed


async def test_simultaneous_calls_with_one_password_are_one_hash(
    authenticator: Authenticator, key: str, hashed: list[bool]
) -> None:
    """And one attempt: twenty threads at start are not an attack."""
    header = basic("ada", "correct horse")
    await asyncio.gather(*(authenticator.authenticate([header], HERE) for _ in range(50)))

    assert [True] == hashed


async def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(
    authenticator: Authenticator, key: str, hashed: list[bool]
) -> None:
    """For the same work."""
    wrong = await failure(authenticator, basic("ada", "wrong horse"))
    unknown = await failure(authenticator, basic("eve", "wrong horse"))

    assert (wrong.message, wrong.status, wrong.headers) == (
        unknown.message,
        unknown.status,
        unknown.headers,
    )
    assert [True, False] == hashed


async def test_a_changed_password_counts_although_the_old_one_is_remembered(
    authenticator: Authenticator, admin: Administration, key: str, clock: Any
) -> None:
    """Within the five seconds that a user's row is believed."""
    await authenticator.authenticate([basic("ada", "correct horse")], HERE)
    await admin.users.update("ada", password="battery staple")
    clock.now_s += 5.0

    assert isinstance(await failure(authenticator, basic("ada", "correct horse")), Unauthorized)
    assert await authenticator.authenticate([basic("ada", "battery staple")], HERE)


@pytest.mark.fault(18)
async def test_guessing_is_refused_before_hashing_and_only_where_it_comes_from(
    authenticator: Authenticator, key: str, hashed: list[bool]
) -> None:
    """A thousand tries at once are ten hashes; the user gets in from elsewhere."""
    for name in ("ada", "eve"):
        source = f"source of {name}"
        hashed.clear()
        outcomes = await asyncio.gather(
            *(
                authenticator.authenticate([basic(name, f"guess {number}")], source)
                for number in range(500)
            ),
            return_exceptions=True,
        )
        assert 10 == len(hashed) == sum(isinstance(outcome, Unauthorized) for outcome in outcomes)
        assert 490 == sum(isinstance(outcome, RateLimited) for outcome in outcomes)
        with pytest.raises(RateLimited) as caught:
            await authenticator.login([basic("ada", "correct horse")], None, source)
        assert "60" == caught.value.headers["Retry-After"]

    assert await authenticator.authenticate([basic("ada", "correct horse")], HERE)


async def test_a_database_that_is_away_is_no_failed_login(
    authenticator: Authenticator, key: str, monkeypatch: pytest.MonkeyPatch, clock: Any
) -> None:
    """Nobody is locked out by it."""
    with monkeypatch.context() as patched:

        def away(*_: Any) -> Any:
            raise overloaded()

        patched.setattr(Store, "reading", away)
        for _ in range(20):
            error = await failure(authenticator, basic("ada", "correct horse"))
            assert isinstance(error, Overloaded)
            clock.now_s += 1.0

    assert await authenticator.authenticate([basic("ada", "correct horse")], HERE)


# Sessions


async def test_a_login_gives_a_session_that_authenticates(
    authenticator: Authenticator, key: str
) -> None:
    """By headers or by body."""
    from omai_ray.identity.credentials import Basic

    first, value = await authenticator.login([basic("ada", "correct horse")], None, HERE)
    second, other = await authenticator.login([], Basic("ada", "correct horse"), HERE)

    assert first == await authenticator.authenticate([cookie(value)], HERE)
    assert second == await authenticator.authenticate([cookie(other)], HERE)
    assert first.session_id != second.session_id
    assert value not in repr(first)
    assert (43, 43) == (len(value), len(other))


async def test_a_valid_session_wins_before_any_password_is_hashed(
    authenticator: Authenticator, key: str, hashed: list[bool]
) -> None:
    """`session.auth` sends Basic beside the cookie, for ever."""
    principal, value = await authenticator.login([basic("ada", "correct horse")], None, HERE)
    hashed.clear()
    for header in (basic("ada", "wrong"), bearer("wrong"), bearer(key)):
        assert principal == await authenticator.authenticate([header, cookie(value)], HERE)
    assert [] == hashed


async def test_a_session_that_is_over_leaves_the_decision_to_the_header(
    authenticator: Authenticator, key: str
) -> None:
    """Alone it asks for another login."""
    over = cookie("x" * 43)
    assert (await authenticator.authenticate([over, bearer(key)], HERE)).key_id
    error = await failure(authenticator, over)

    assert (401, "Your session has ended. Please log in again.") == (error.status, error.message)


async def test_a_login_needs_a_password(authenticator: Authenticator, key: str) -> None:
    """A key does not begin a session."""
    for headers in ([], [bearer(key)]):
        with pytest.raises(Unauthorized, match="log in with your username"):
            await authenticator.login(headers, None, HERE)
    with pytest.raises(Unauthorized, match="Incorrect username or password"):
        await authenticator.login([basic("ada", "wrong horse")], None, HERE)


async def test_a_login_ends_the_session_it_came_with(
    authenticator: Authenticator, key: str
) -> None:
    """One that was planted is worth nothing afterwards."""
    header = basic("ada", "correct horse")
    _, planted = await authenticator.login([header], None, HERE)
    await authenticator.authenticate([cookie(planted)], HERE)
    _, value = await authenticator.login([header, cookie(planted)], None, HERE)

    assert planted != value
    assert isinstance(await failure(authenticator, cookie(planted)), Unauthorized)
    assert await authenticator.authenticate([cookie(value)], HERE)


async def test_a_logout_ends_its_session_at_once(authenticator: Authenticator, key: str) -> None:
    """And no other; twice, or without one, is no error."""
    header = basic("ada", "correct horse")
    _, value = await authenticator.login([header], None, HERE)
    _, other = await authenticator.login([header], None, HERE)
    await authenticator.authenticate([cookie(value)], HERE)
    for _ in range(2):
        await authenticator.logout([cookie(value)])
    await authenticator.logout([])

    assert isinstance(await failure(authenticator, cookie(value)), Unauthorized)
    assert await authenticator.authenticate([cookie(other)], HERE)


async def test_an_idle_session_ends_after_eight_hours(
    authenticator: Authenticator, key: str, clock: Any
) -> None:
    """Use keeps it alive."""
    _, value = await authenticator.login([basic("ada", "correct horse")], None, HERE)
    for _ in range(3):
        clock.now_s += 7 * 3600
        assert await authenticator.authenticate([cookie(value)], HERE)
        await authenticator._session_touches.close()
    clock.now_s += 8 * 3600

    assert isinstance(await failure(authenticator, cookie(value)), Unauthorized)


async def test_a_session_ends_after_seven_days_of_use(
    authenticator: Authenticator, key: str, clock: Any
) -> None:
    """However busy it is."""
    _, value = await authenticator.login([basic("ada", "correct horse")], None, HERE)
    for _ in range(27):
        clock.now_s += 6 * 3600
        assert await authenticator.authenticate([cookie(value)], HERE)
        await authenticator._session_touches.close()
    clock.now_s += 6 * 3600

    assert isinstance(await failure(authenticator, cookie(value)), Unauthorized)


async def test_a_changed_password_ends_all_sessions(
    authenticator: Authenticator, admin: Administration, key: str, clock: Any
) -> None:
    """Whoever had the old one is out."""
    _, value = await authenticator.login([basic("ada", "correct horse")], None, HERE)
    await admin.users.update("ada", password="battery staple")
    clock.now_s += 5.0

    assert isinstance(await failure(authenticator, cookie(value)), Unauthorized)


async def test_sessions_are_stored_hashed_and_removed_when_over(
    authenticator: Authenticator, store: Store, key: str, clock: Any
) -> None:
    """A stolen database is no login, and does not grow."""
    from omai_ray.store.tables import sessions

    header = basic("ada", "correct horse")
    values = [(await authenticator.login([header], None, HERE))[1] for _ in range(3)]
    async with store.reading() as connection:
        rows = str((await connection.execute(select(sessions))).all())
    assert not any(value in rows for value in values)

    clock.now_s += 8 * 3600
    await authenticator.login([header], None, HERE)
    async with store.reading() as connection:
        assert 1 == len((await connection.execute(select(sessions))).all())


async def test_a_session_tells_where_it_came_from(
    authenticator: Authenticator, admin: Administration, key: str
) -> None:
    """And what by: cut short, and printable."""
    agent = (b"user-agent", b"curl/8\n" + b"x" * 500)
    await authenticator.login([basic("ada", "correct horse"), agent], None, HERE)
    user = await admin.users.get("ada")
    (session,) = await authenticator.sessions.list(user.id)

    assert (HERE, "curl/8" + "x" * 193) == (session.source, session.user_agent)


async def test_logins_and_logouts_are_audited(
    authenticator: Authenticator, admin: Administration, key: str
) -> None:
    """Also those that fail, of a user or of nobody; a typed name may be a password, and is not."""
    user = await admin.users.get("ada")
    _, value = await authenticator.login([basic("ada", "correct horse")], None, HERE)
    await authenticator.logout([cookie(value)], HERE)
    await failure(authenticator, basic("ada", "wrong horse"))
    await failure(authenticator, basic("hunter2", "ada"))
    await admin.audit.close()
    entries = (await admin.audit.list()).items[:5]

    assert {
        ("session.login", user.id, user.id, "success"),
        ("session.logout", user.id, user.id, "success"),
        ("password.check", user.id, user.id, "success"),
        ("password.check", "anonymous", user.id, "failure"),
        ("password.check", "anonymous", None, "failure"),
    } == {(entry.action, entry.actor, entry.target, entry.outcome) for entry in entries}
    assert {HERE} == {entry.source for entry in entries}
    assert "hunter2" not in str(entries)


async def test_sessions_are_revoked_by_their_ids(
    authenticator: Authenticator, admin: Administration, key: str, clock: Any
) -> None:
    """One's own only; ending all can spare the current one; what is over is not listed."""
    header = basic("ada", "correct horse")
    logins = []
    for _ in range(3):
        logins.append(await authenticator.login([header], None, HERE))
        clock.now_s += 1
    user = await admin.users.get("ada")
    ids = [principal.session_id for principal, _ in logins]
    assert ids[::-1] == [session.id for session in await authenticator.sessions.list(user.id)]

    actor = Actor("user_root")
    for session_id, owner in ((ids[0], "user_2"), ("nosuch", user.id)):
        with pytest.raises(NotFound):
            await authenticator.revoke_session(str(session_id), owner, actor)
    await authenticator.revoke_session(str(ids[0]), user.id, actor)
    assert 1 == await authenticator.revoke_sessions(user.id, actor, kept=ids[2])
    for (_, value), lives in zip(logins, (False, False, True), strict=True):
        if lives:
            assert await authenticator.authenticate([cookie(value)], HERE)
        else:
            assert isinstance(await failure(authenticator, cookie(value)), Unauthorized)
    clock.now_s += 8 * 3600
    assert [] == await authenticator.sessions.list(user.id)


async def test_failures_are_counted_on_every_replica(
    registry: Registry, authenticator: Authenticator, key: str, clock: Any, hashed: list[bool]
) -> None:
    """Ten in a minute altogether, whichever replica they reach; from elsewhere the user gets in."""
    other = Authenticator(registry, monotonic=clock)
    for number in range(12):
        guesser = (authenticator, other)[number % 2]
        error = await failure(guesser, basic("ada", f"guess {number}"))
        expected = Unauthorized if number < 10 else RateLimited
        assert isinstance(error, expected)
        clock.now_s += 1.0
    assert 10 == len(hashed)
    assert "49" == error.headers["Retry-After"]
    assert await other.authenticate([basic("ada", "correct horse")], "5.6.7.8")
    clock.now_s += 48.0
    assert await other.authenticate([basic("ada", "correct horse")], HERE)
    await other.close()


async def test_a_hash_with_old_parameters_is_made_anew_at_login(
    registry: Registry, admin: Administration, authenticator: Authenticator, key: str, clock: Any
) -> None:
    """The password works on, with the parameters of today."""
    stronger = Passwords(PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    other = Authenticator(replace(registry, passwords=stronger), monotonic=clock)
    before = (await admin.users.get("ada")).password_hash
    await other.authenticate([basic("ada", "correct horse")], HERE)
    after = (await admin.users.get("ada")).password_hash

    assert ("m=8,t=1", "m=16,t=2") == (before.split("$")[3][:7], after.split("$")[3][:8])
    assert await other.authenticate([basic("ada", "correct horse")], HERE)
    assert after == (await admin.users.get("ada")).password_hash
    await other.close()
    stronger.close()


async def test_keys_move_to_a_new_pepper_when_they_are_used(
    registry: Registry, admin: Administration, key: str, clock: Any, tmp_path: Path
) -> None:
    """From its time on, in processes that run all along; then the old one may go."""
    path = tmp_path / "pepper"
    path.write_text(f"1 {(b'p' * 32).hex()}\n")
    started = Peppers(Peppers.load(path)._by_version, path, clock)
    running = Authenticator(replace(registry, peppers=started), monotonic=clock)
    ours = Administration(replace(registry, peppers=started))
    await running.authenticate([bearer(key)], HERE)
    assert 2 == add_version(path, clock.now_s + 3600)
    clock.now_s += 6
    await running.authenticate([bearer(key)], HERE)
    record, made = await ours.keys.create("ada")
    assert 1 == record.pepper_version  # its time has not come

    clock.now_s += 3600
    record, made = await ours.keys.create("ada")
    assert 2 == record.pepper_version
    assert record.id == (await running.authenticate([bearer(made)], HERE)).key_id
    await running.authenticate([bearer(key)], HERE)
    await asyncio.gather(*running._renewals.values())
    versions = {item.id: item.pepper_version for item in (await admin.keys.list()).items}
    assert [2, 2] == [versions[text[8:20]] for text in (key, made)]
    path.write_text(path.read_text().splitlines()[1])
    restarted = Authenticator(replace(registry, peppers=Peppers.load(path)), monotonic=clock)
    for text in (key, made):
        assert await restarted.authenticate([bearer(text)], HERE)
    await running.close()
    await restarted.close()


async def test_a_key_whose_pepper_is_gone_is_incorrect(
    registry: Registry, key: str, clock: Any
) -> None:
    """It fails closed."""
    other = Authenticator(replace(registry, peppers=Peppers({2: b"q" * 32})), monotonic=clock)
    assert "Incorrect" in (await failure(other, bearer(key))).message
    await other.close()


@pytest.mark.fault(9)
async def test_a_silent_database_is_answered_for_within_a_quarter_of_a_second(
    registry: Registry, key: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that swallows packets: known keys pass, others are told to come back."""
    other = Authenticator(registry, monotonic=clock)
    assert await other.authenticate([bearer(key)], HERE)
    for lookups in (other._keys, other._session_entries):
        lookups._answer_s = lookups._patience_s = 0.02
    silent = asyncio.Event()

    @asynccontextmanager
    async def swallowed(_: Store) -> AsyncIterator[Any]:
        await silent.wait()
        yield None

    monkeypatch.setattr(Store, "reading", swallowed)
    clock.now_s += 6.0
    assert await other.authenticate([bearer(key)], HERE)
    _, unknown = generate()
    for header in (bearer(unknown), cookie("x" * 43)):
        error = await failure(other, header)
        assert isinstance(error, Overloaded)
        assert "1" == error.headers["Retry-After"]
    await other.close()


async def test_a_password_that_was_changed_elsewhere_begins_no_session(
    registry: Registry, admin: Administration, authenticator: Authenticator, key: str
) -> None:
    """Though it is still remembered here, and the user's row believed."""
    header = basic("ada", "correct horse")
    await authenticator.authenticate([header], HERE)
    await admin.users.update("ada", password="battery staple")
    with pytest.raises(Unauthorized):
        await authenticator.login([header], None, HERE)
    entry = await authenticator.verify_password("ada", "correct horse", HERE)
    with pytest.raises(Unauthorized):
        await admin.users.update("ada", verified=entry.user.password_hash, password="mallory's own")
    await admin.users.delete("ada")
    with pytest.raises(Unauthorized):
        await authenticator.login([header], None, HERE)
    fresh = Authenticator(registry)
    with pytest.raises(Unauthorized):
        await fresh.authenticate([header], HERE)
    await fresh.close()


async def test_a_user_has_only_so_many_sessions(
    authenticator: Authenticator,
    admin: Administration,
    key: str,
    clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest make way."""
    monkeypatch.setattr("omai_ray.identity.sessions.MAX_SESSIONS", 3)
    header = basic("ada", "correct horse")
    ids = []
    for _ in range(5):
        principal, _ = await authenticator.login([header], None, HERE)
        ids.append(principal.session_id)
        clock.now_s += 1
    user = await admin.users.get("ada")

    assert ids[:1:-1] == [session.id for session in await authenticator.sessions.list(user.id)]


async def test_a_name_that_no_database_can_hold_is_an_unknown_user(
    authenticator: Authenticator, key: str
) -> None:
    """Whoever sends it is told what any wrong caller is."""
    error = await failure(authenticator, basic("ada\0", "correct horse"))
    assert (401, "Incorrect username or password.") == (error.status, error.message)


async def test_times_of_last_use_are_written_in_one_order(
    registry: Registry, authenticator: Authenticator, admin: Administration, database_url: str
) -> None:
    """Replicas that note the same keys in different order do not wait for each other."""
    await admin.accounts.create("ada", "basic")
    made = [(await admin.keys.create("ada"))[1] for _ in range(40)]
    store = await Store.open(database_url)
    other = Authenticator(replace(registry, store=store))
    for one, two in zip(made, reversed(made), strict=True):
        await authenticator.authenticate([bearer(one)], HERE)
        await other.authenticate([bearer(two)], HERE)
    await asyncio.gather(authenticator._key_touches.close(), other._key_touches.close())
    assert all(key.last_used for key in (await admin.keys.list()).items)
    await other.close()
    await store.close()
