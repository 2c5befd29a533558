"""A measurement that is taken again and again, in a thread, while something else happens."""

from __future__ import annotations

import threading
from typing import Self


class Sampler:
    """A context that calls `take` every so many seconds; subclasses say what that is."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def take(self) -> None:
        """Measure once."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.take()
