"""From a request's headers to its principal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from omai_ray.errors import ConfigError, OMAiError
from omai_ray.identity.actor import Actor
from omai_ray.identity.credentials import (
    MISSING,
    Basic,
    Bearer,
    Headers,
    incorrect_key,
    read_credentials,
    unauthorized,
)
from omai_ray.identity.directory import Directory, UserEntry
from omai_ray.identity.keys import ParsedKey, compute_mac, matches, parse
from omai_ray.identity.lookups import Lookups
from omai_ray.identity.password_login import PasswordLogin
from omai_ray.identity.principal import Principal, require_active
from omai_ray.identity.registry import Registry
from omai_ray.identity.sessions import Sessions, hashed
from omai_ray.identity.throttle import SharedFailures
from omai_ray.identity.touches import Touches
from omai_ray.settings import SessionSettings
from omai_ray.store import ApiKey
from omai_ray.store.tables import api_keys
from omai_ray.store.tables import sessions as session_table

PEPPERS_S = 5.0


class Authenticator:
    """Finds out who is calling: by session cookie, by key, or by password, in that order.

    monotonic: seconds, for caches and the throttle; expiries go by the registry's clock.
    cache_ttl_s: how long a key may still work after it was revoked.
    """

    def __init__(
        self,
        registry: Registry,
        sessions: SessionSettings | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        cache_ttl_s: float = 5.0,
    ) -> None:
        store, clock = registry.store, registry.clock
        directory = self._directory = Directory(store)
        self._peppers = registry.peppers
        self._clock = clock
        self._monotonic = monotonic
        self._peppers_due_s = monotonic() + PEPPERS_S
        self.sessions = Sessions(store, registry.audit, clock, sessions)
        answer_s = store.patience_s
        self._keys = Lookups(directory.key, monotonic, cache_ttl_s, answer_s=answer_s)
        self._users = Lookups(directory.user, monotonic, cache_ttl_s, answer_s=answer_s)
        self._session_entries = Lookups(
            directory.session, monotonic, cache_ttl_s, answer_s=answer_s
        )
        self._login = PasswordLogin(
            self._users,
            directory,
            registry.passwords,
            SharedFailures(store, clock, registry.peppers),
            registry.audit,
            monotonic,
        )
        self._key_touches = Touches(store, api_keys.c.id, api_keys.c.last_used, clock)
        self._session_touches = Touches(store, session_table.c.id, session_table.c.last_seen, clock)
        self._renewals: dict[str, asyncio.Task[None]] = {}

    async def authenticate(self, headers: Headers, source: str) -> Principal:
        """Return the caller.

        source: where the request came from, for the throttle. Raises Unauthorized,
        PermissionDenied (suspended), RateLimited (failed logins), Overloaded (no database).
        """
        presented = read_credentials(headers)
        if presented.session is not None:
            principal = await self._by_session(presented.session)
            if principal is not None:
                return principal
        match presented.authorization:
            case Bearer(token):
                return await self._by_key(token)
            case Basic() as basic:
                entry = await self._by_password(basic, source)
                return Principal.of_user(entry.account, entry.user)
            case None if presented.session is not None:
                raise unauthorized("Your session has ended. Please log in again.")
        raise unauthorized(MISSING)

    async def login(
        self, headers: Headers, credentials: Basic | None, source: str
    ) -> tuple[Principal, str]:
        """Begin a session; return its principal and the cookie's value.

        credentials: from the body, where it has them; else the headers' Basic ones are used.
        Raises as authenticate does.
        """
        presented = read_credentials(headers)
        basic = credentials or presented.authorization
        if not isinstance(basic, Basic):
            raise unauthorized("Please log in with your username and password (HTTP Basic).")
        entry = await self._by_password(basic, source)
        session, value = await self.sessions.create(
            entry.user, source, replaced=presented.session, user_agent=_user_agent(headers)
        )
        if presented.session is not None:
            self._session_entries.forget(hashed(presented.session))
        return Principal.of_user(entry.account, entry.user, session), value

    async def logout(self, headers: Headers, source: str | None = None) -> None:
        """End the session of the request's cookie, if it has one."""
        value = read_credentials(headers).session
        if value is not None:
            await self.sessions.end(value, source)
            self._session_entries.forget(hashed(value))

    async def verify_password(self, username: str, password: str, source: str) -> UserEntry:
        """Return the user whose password this is, errors as authenticate's."""
        return await self._by_password(Basic(username, password), source)

    async def revoke_sessions(self, user_id: str, actor: Actor, kept: str | None = None) -> int:
        """End a user's sessions, but for the one of the id `kept`; return how many."""
        ended = await self.sessions.revoke_all(user_id, actor, kept)
        self._session_entries.forget_all()
        return ended

    async def revoke_session(self, session_id: str, user_id: str, actor: Actor) -> None:
        """End one of a user's sessions; raise NotFound for another's."""
        await self.sessions.revoke(session_id, user_id, actor)
        self._session_entries.forget(session_id)

    def forget_user(self, name: str) -> None:
        """Make a change of a user, and the end of their sessions, count at once in this process."""
        self._users.forget(name)
        self._session_entries.forget_all()

    def forget_all(self) -> None:
        """Make a change of an account count at once in this process."""
        for lookups in (self._keys, self._users, self._session_entries):
            lookups.forget_all()

    def forget_key(self, reference: str) -> None:
        """Make a key's change count at once in this process. reference: its id, or all of it."""
        parsed = parse(reference)
        self._keys.forget(parsed.key_id if parsed else reference)

    async def close(self) -> None:
        """Write what is still to be written; free threads. The store stays open."""
        for touches in (self._key_touches, self._session_touches):
            await touches.close()
        await asyncio.gather(*self._renewals.values())
        for lookups in (self._keys, self._users, self._session_entries):
            await lookups.close()

    async def _by_session(self, value: str) -> Principal | None:
        entry = await self._session_entries.get(hashed(value))
        if entry is None or not self.sessions.is_live(entry.session):
            return None
        require_active(entry.account)
        self._session_touches.touch(entry.session.id, entry.session.last_seen)
        return Principal.of_user(entry.account, entry.user, entry.session)

    async def _by_key(self, token: str) -> Principal:
        parsed = parse(token)
        if parsed is None:
            raise incorrect_key(token)
        entry = await self._keys.get(parsed.key_id)
        if self._monotonic() >= self._peppers_due_s:
            await self._read_peppers()
        verified = matches(parsed, entry.key if entry else None, self._peppers)
        if entry is None or not verified:
            raise incorrect_key(token)
        key = entry.key
        if key.pepper_version != self._peppers.version:
            self._renew(parsed, key)
        if key.revoked_at is not None:
            raise unauthorized(f"The API key '{key.name}' has been revoked.")
        if key.expires is not None and self._clock() >= key.expires:
            raise unauthorized(f"The API key '{key.name}' has expired.")
        require_active(entry.account)
        self._key_touches.touch(key.id, key.last_used)
        return entry.principal

    async def _read_peppers(self) -> None:
        """Look for a version that was added, once in PEPPERS_S."""
        self._peppers_due_s = self._monotonic() + PEPPERS_S
        with contextlib.suppress(ConfigError):
            await asyncio.to_thread(self._peppers.reload)

    def _renew(self, parsed: ParsedKey, key: ApiKey) -> None:
        """Store a verified key under the current pepper, behind the request."""
        if key.id in self._renewals:
            return
        mac = compute_mac(parsed, self._peppers.current)
        task = asyncio.create_task(self._store_mac(key, mac, self._peppers.version))
        self._renewals[key.id] = task
        task.add_done_callback(lambda _: self._renewals.pop(key.id, None))

    async def _store_mac(self, key: ApiKey, mac: str, version: int) -> None:
        with contextlib.suppress(OMAiError):  # the next use tries again
            await self._directory.replace_mac(key, mac, version)
            self._keys.forget(key.id)

    async def _by_password(self, basic: Basic, source: str) -> UserEntry:
        entry = await self._login.verify(basic, source)
        require_active(entry.account)
        return entry


def _user_agent(headers: Headers) -> str | None:
    values = [value for name, value in headers if name == b"user-agent"]
    return values[0].decode("latin-1") if values else None
