"""From a request's headers to its principal."""

from __future__ import annotations

import time
from collections.abc import Callable

from omai_ray.errors import PermissionDenied
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
from omai_ray.identity.keys import matches, parse
from omai_ray.identity.lookups import Lookups
from omai_ray.identity.password_login import PasswordLogin
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.peppers import Peppers
from omai_ray.identity.principal import Principal
from omai_ray.identity.sessions import Sessions, hashed
from omai_ray.identity.throttle import LoginThrottle
from omai_ray.identity.touches import Touches
from omai_ray.store import Account, Store
from omai_ray.store.tables import api_keys, sessions


class Authenticator:
    """Finds out who is calling: by session cookie, by key, or by password, in that order.

    clock: seconds since the epoch, for expiries. monotonic: seconds, for caches and the throttle.
    cache_ttl_s: how long a key may still work after it was revoked.
    """

    def __init__(
        self,
        store: Store,
        peppers: Peppers,
        *,
        passwords: Passwords | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        cache_ttl_s: float = 5.0,
    ) -> None:
        directory = Directory(store)
        self._peppers = peppers
        self._clock = clock
        self._passwords = passwords or Passwords()
        self.sessions = Sessions(store, clock)
        self._keys = Lookups(directory.key, monotonic, cache_ttl_s)
        self._users = Lookups(directory.user, monotonic, cache_ttl_s)
        self._session_entries = Lookups(directory.session, monotonic, cache_ttl_s)
        throttle = LoginThrottle(monotonic)
        self._login = PasswordLogin(self._users, self._passwords, throttle, monotonic)
        self._key_touches = Touches(store, api_keys.c.id, api_keys.c.last_used, clock)
        self._session_touches = Touches(store, sessions.c.id, sessions.c.last_seen, clock)

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
        session, value = await self.sessions.create(entry.user.id, replaced=presented.session)
        if presented.session is not None:
            self._session_entries.forget(hashed(presented.session))
        return Principal.of_user(entry.account, entry.user, session), value

    async def logout(self, headers: Headers) -> None:
        """End the session of the request's cookie, if it has one."""
        value = read_credentials(headers).session
        if value is not None:
            await self.sessions.end(value)
            self._session_entries.forget(hashed(value))

    def forget_key(self, key_id: str) -> None:
        """Make a revocation count at once in this process."""
        self._keys.forget(key_id)

    async def close(self) -> None:
        """Write what is still to be written; free threads. The store stays open."""
        for touches in (self._key_touches, self._session_touches):
            await touches.close()
        for lookups in (self._keys, self._users, self._session_entries):
            await lookups.close()
        self._passwords.close()

    async def _by_session(self, value: str) -> Principal | None:
        entry = await self._session_entries.get(hashed(value))
        if entry is None or not self.sessions.is_live(entry.session):
            return None
        _require_active(entry.account)
        self._session_touches.touch(entry.session.id, entry.session.last_seen)
        return Principal.of_user(entry.account, entry.user, entry.session)

    async def _by_key(self, token: str) -> Principal:
        parsed = parse(token)
        if parsed is None:
            raise incorrect_key(token)
        entry = await self._keys.get(parsed.key_id)
        verified = matches(parsed, entry.key if entry else None, self._peppers)
        if entry is None or not verified:
            raise incorrect_key(token)
        key = entry.key
        if key.revoked_at is not None:
            raise unauthorized(f"The API key '{key.name}' has been revoked.")
        if key.expires is not None and self._clock() >= key.expires:
            raise unauthorized(f"The API key '{key.name}' has expired.")
        _require_active(entry.account)
        self._key_touches.touch(key.id, key.last_used)
        return Principal.of_key(entry.account, key)

    async def _by_password(self, basic: Basic, source: str) -> UserEntry:
        entry = await self._login.verify(basic, source)
        _require_active(entry.account)
        return entry


def _require_active(account: Account) -> None:
    if account.status != "active":
        raise PermissionDenied(f"The account '{account.name}' is suspended.")
