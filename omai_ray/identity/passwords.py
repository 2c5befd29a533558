"""Password hashes: argon2id, a few at a time, never on the event loop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from omai_ray.errors import Overloaded

MAX_WAITING = 64
_T = TypeVar("_T")


class Passwords:
    """Hashes and verifies passwords in threads of its own.

    concurrency: how many at once; each takes a core and, by default, 64 MiB. More than
    MAX_WAITING callers raise Overloaded, so that guessing cannot queue without bound.
    """

    def __init__(self, hasher: PasswordHasher | None = None, concurrency: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="argon2")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Return the password's hash in PHC form."""
        return await self._run(self._hasher.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is the hash's; None, an unknown user, takes as long as any."""
        return await self._run(self._verify, password_hash, password)

    def close(self) -> None:
        """End the threads, once they are done with what they have."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[..., _T], *args: str | None) -> _T:
        if self._waiting >= MAX_WAITING:
            raise Overloaded("Too many logins at once. Please try again.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        finally:
            self._waiting -= 1

    @cached_property
    def _dummy(self) -> str:
        return self._hasher.hash(secrets.token_hex(16))

    def _verify(self, password_hash: str | None, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash or self._dummy, password) and (
                password_hash is not None
            )
        except (VerificationError, InvalidHashError):
            return False
