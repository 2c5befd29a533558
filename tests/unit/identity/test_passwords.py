from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest
from argon2 import PasswordHasher

from omai_ray.errors import Overloaded
from omai_ray.identity import passwords as module
from omai_ray.identity.passwords import Passwords, default_hasher


async def test_only_the_right_password_verifies(passwords: Passwords) -> None:
    """Hashes are argon2id, salted."""
    first, second = await passwords.hash("correct horse"), await passwords.hash("correct horse")

    assert first.startswith("$argon2id$")
    assert first != second
    assert await passwords.verify(first, "correct horse")
    assert not await passwords.verify(first, "correct hors")


async def test_an_unknown_user_is_hashed_for_like_any(passwords: Passwords) -> None:
    """The dummy has the parameters of real hashes, and no password is right."""
    assert not await passwords.verify(None, "anything")
    assert not await passwords.verify("garbage", "anything")
    real = await passwords.hash("x")
    assert passwords._dummy.rsplit("$", 2)[0] == real.rsplit("$", 2)[0]


def test_the_default_is_what_rfc_9106_asks_for() -> None:
    """Its second choice, 3 passes over 64 MiB, in one lane: a hash takes one thread."""
    hasher = default_hasher()
    assert (3, 65536, 1) == (hasher.time_cost, hasher.memory_cost, hasher.parallelism)


class Held(PasswordHasher):
    """Hashes when it is let, and counts who is at it."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.let = threading.Event()
        self.active = self.most = 0
        self.lock = threading.Lock()

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        with self.lock:
            self.active += 1
            self.most = max(self.most, self.active)
        self.let.wait(10)
        with self.lock:
            self.active -= 1
        return str(threading.get_ident())


async def test_hashing_is_bounded_and_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once; beyond those that may wait, callers are sent away."""
    monkeypatch.setattr(module, "MAX_WAITING", 6)
    held = Held()
    passwords = Passwords(held, concurrency=2)
    tasks = [asyncio.create_task(passwords.hash("x")) for _ in range(6)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await passwords.hash("x")
    held.let.set()
    threads = await asyncio.gather(*tasks)
    passwords.close()

    assert held.most <= 2
    assert str(threading.get_ident()) not in threads


@pytest.mark.skipif(sys.platform != "linux", reason="a priority is a thread's on Linux alone")
async def test_hashing_gives_way_to_everything_else(passwords: Passwords) -> None:
    """Its threads have a low priority; the event loop's keeps its own."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    priority = await passwords._run(lambda: os.getpriority(os.PRIO_PROCESS, 0))

    assert (10, before) == (priority, os.getpriority(os.PRIO_PROCESS, 0))
