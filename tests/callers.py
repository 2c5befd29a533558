"""Clients that call side by side for as long as a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Callers:
    """A context in which threads run; they look at `_stop`, and are waited for at its end."""

    def __init__(self, *calls: Callable[[], None]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=call) for call in calls]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
