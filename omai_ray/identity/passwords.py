"""Hashing passwords with argon2id, away from the event loop and behind everything else."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from omai_ray.errors import Overloaded

MAX_WAITING = 64
NICENESS = 10
_T = TypeVar("_T")


def default_hasher() -> PasswordHasher:
    """Return argon2id with 64 MiB, three passes and one lane: a hash takes one thread.

    Source: RFC 9106, section 4, second recommendation, with one lane in place of four.
    """
    return PasswordHasher(time_cost=3, memory_cost=65536, parallelism=1)


class Passwords:
    """Hashes and verifies passwords in threads of its own, which give way to all others.

    concurrency: how many at once; each takes a core and, by default, 64 MiB. More than
    MAX_WAITING callers raise Overloaded, so that guessing cannot queue without bound.
    """

    def __init__(self, hasher: PasswordHasher | None = None, concurrency: int = 2) -> None:
        self._hasher = hasher or default_hasher()
        self._pool = ThreadPoolExecutor(concurrency, "argon2", initializer=_give_way)
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Return the password's hash in PHC form."""
        return await self._run(self._hasher.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is the hash's; None, an unknown user, takes as long as any."""
        return await self._run(self._verify, password_hash, password)

    def is_outdated(self, password_hash: str) -> bool:
        """Whether a hash was made with other parameters than new ones are."""
        return self._hasher.check_needs_rehash(password_hash)

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


def _give_way() -> None:
    """Lower this thread's priority; on Linux alone is a priority a thread's."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
