"""Checking usernames and passwords: throttled, and not hashed anew on every call."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from omai_ray.errors import OMAiError, RateLimited
from omai_ray.identity.actor import Actor
from omai_ray.identity.audit import AuditLog
from omai_ray.identity.credentials import Basic, unauthorized
from omai_ray.identity.directory import Directory, UserEntry
from omai_ray.identity.lookups import Lookups
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.throttle import Attempt, LoginThrottle, SharedFailures
from omai_ray.store import Outcome

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
        directory: Directory,
        passwords: Passwords,
        failures: SharedFailures,
        audit: AuditLog,
        clock: Callable[[], float],
    ) -> None:
        self._users = users
        self._directory = directory
        self._passwords = passwords
        self._throttle = LoginThrottle(clock)
        self._failures = failures
        self._audit = audit
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
        try:
            attempt = await self._throttle.begin(source, basic.username)
        except RateLimited:
            self._note(source, None, "denied")
            raise
        failed = False
        try:
            await self._failures.check(attempt)
            entry = await self._users.get(basic.username)
            password_hash = entry.user.password_hash if entry else None
            verified = await self._passwords.verify(password_hash, basic.password)
            failed = entry is None or not verified
        except RateLimited:
            self._note(source, None, "denied")
            raise
        finally:
            self._throttle.end(attempt, failed=failed)
        if entry is None or not verified:
            await self._failed(attempt, source, entry)
            raise unauthorized("Incorrect username or password.")
        self._note(source, entry, "success")
        password_hash = await self._renewed(entry, basic)
        self._remember(digest, password_hash)
        return replace(entry, user=replace(entry.user, password_hash=password_hash))

    def _note(self, source: str, entry: UserEntry | None, outcome: Outcome) -> None:
        user = entry.user if entry else None
        actor = Actor("anonymous", source=source)
        if user is not None and outcome == "success":
            actor = Actor(user.id, user.name, source)
        self._audit.note(
            self._audit.entry(
                actor,
                "password.check",
                user.id if user else None,
                user.account_id if user else None,
                outcome=outcome,
            )
        )

    async def _failed(self, attempt: Attempt, source: str, entry: UserEntry | None) -> None:
        self._note(source, entry, "failure")
        with contextlib.suppress(OMAiError):  # counted in this process all the same
            await self._failures.add(attempt)

    async def _renewed(self, entry: UserEntry, basic: Basic) -> str:
        """Return the user's hash, made anew where its parameters are no longer today's."""
        old = entry.user.password_hash
        if not self._passwords.is_outdated(old):
            return old
        try:
            new = await self._passwords.hash(basic.password)
            await self._directory.replace_password_hash(entry.user.id, old, new)
        except OMAiError:
            return old
        self._users.forget(entry.user.name)
        return new

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
