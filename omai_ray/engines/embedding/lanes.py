"""Batches side by side, each on threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from omai_ray.priority import give_way_to_callers

Item = TypeVar("Item")
_MOST = 8  # all of them share Python's lock between operators


class Lanes:
    """Runs work on a number of CPU threads.

    Several batches go side by side, each on threads of its own: so they need not wait for each
    other at every operator, and find their values in their core's cache. One alone has all threads.
    """

    def __init__(self, threads: int) -> None:
        self.count = min(threads, _MOST)
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            self._pool = self._start(threads)

    def _start(self, threads: int) -> ThreadPoolExecutor:
        started = threading.Barrier(self.count + 1)

        def begin() -> None:
            torch.get_num_threads()  # a thread takes over the process's number at its first use
            torch.set_num_threads(threads // self.count)
            started.wait()
            give_way_to_callers()

        pool = ThreadPoolExecutor(self.count, "embedding-lane", begin)
        for _ in range(self.count):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(threads)  # the lanes' own are set: this is for all other threads
        return pool

    def run(self, work: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Call `work` with each item, in no order; raise the first failure once all have ended."""
        if self._pool is None or len(items) < 2:
            for item in items:
                work(item)
            return
        futures = [self._pool.submit(work, item) for item in items]
        wait(futures)
        for future in futures:
            future.result()
