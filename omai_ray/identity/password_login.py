"""Checking usernames and passwords: throttled, and not hashed anew on every call."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable

from omai_ray.identity.credentials import Basic, unauthorized
from omai_ray.identity.directory import UserEntry
from omai_ray.identity.lookups import Lookups
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.throttle import LoginThrottle

REMEMBER_S = 60.0
_MAX_REMEMBERED = 10_000


class PasswordLogin:
    """Verifies a password once, and then recognises it for REMEMBER_S.

    What is remembered is an HMAC under a key that this process alone has, next to the hash that
    it was verified against: a changed password is asked for again. clock: seconds, monotonic.
    """

    def __init__(
        self,
        users: Lookups[UserEntry],
        passwords: Passwords,
        throttle: LoginThrottle,
        clock: Callable[[], float],
    ) -> None:
        self._users = users
        self._passwords = passwords
        self._throttle = throttle
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._checking: dict[tuple[bytes, str], asyncio.Task[UserEntry]] = {}

    async def verify(self, basic: Basic, source: str) -> UserEntry:
        """Return the user; raise Unauthorized, RateLimited, or Overloaded.

        Simultaneous calls with the same credentials are one attempt.
        """
        digest = self._digest(basic)
        entry = await self._recall(digest, basic.username)
        if entry is not None:
            return entry
        task = self._checking.get((digest, source))
        if task is None:
            task = asyncio.create_task(self._check(digest, basic, source))
            self._checking[digest, source] = task
            task.add_done_callback(lambda done: self._checked((digest, source), done))
        return await asyncio.shield(task)

    async def _recall(self, digest: bytes, username: str) -> UserEntry | None:
        password_hash, until_s = self._remembered.get(digest, ("", 0.0))
        if not password_hash or self._clock() >= until_s:
            self._remembered.pop(digest, None)
            return None
        entry = await self._users.get(username)
        return entry if entry and entry.user.password_hash == password_hash else None

    async def _check(self, digest: bytes, basic: Basic, source: str) -> UserEntry:
        attempt = self._throttle.begin(source, basic.username)
        try:
            entry = await self._users.get(basic.username)
            password_hash = entry.user.password_hash if entry else None
            verified = await self._passwords.verify(password_hash, basic.password)
        except BaseException:
            self._throttle.forgive(attempt)
            raise
        if entry is None or not verified:
            raise unauthorized("Incorrect username or password.")
        self._throttle.forgive(attempt)
        self._remember(digest, entry.user.password_hash)
        return entry

    def _remember(self, digest: bytes, password_hash: str) -> None:
        self._remembered[digest] = (password_hash, self._clock() + REMEMBER_S)
        self._remembered.move_to_end(digest)
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _checked(self, key: tuple[bytes, str], task: asyncio.Task[UserEntry]) -> None:
        del self._checking[key]
        if not task.cancelled():
            task.exception()  # seen, even where every caller has gone away

    def _digest(self, basic: Basic) -> bytes:
        # A name cannot hold a NUL that would move the boundary: no such user can be created.
        message = f"{basic.username}\0{basic.password}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).digest()
