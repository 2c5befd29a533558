"""Show how far a job is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

LINE_EVERY_S = 5.0
RATE_AFTER_S = 1.0


@dataclass(frozen=True)
class Snapshot:
    """Where a run is. Rows are this run's; elapsed_s counts from the first actor's first unit."""

    rows_done: int
    rows_total: int
    tokens: int
    dead: int
    elapsed_s: float

    @property
    def rows_per_s(self) -> float:
        """Average rate so far; 0 while it is too early to tell."""
        return self.rows_done / self.elapsed_s if self.elapsed_s >= RATE_AFTER_S else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at that rate; None before there is one."""
        rate = self.rows_per_s
        return (self.rows_total - self.rows_done) / rate if rate else None

    def describe(self) -> str:
        """Return the numbers as one line."""
        percent = 100 * self.rows_done / self.rows_total if self.rows_total else 100.0
        left = "unknown" if self.eta_s is None else clock(self.eta_s)
        return (
            f"{self.rows_done:,} of {self.rows_total:,} rows ({percent:.0f} %), "
            f"{self.rows_per_s:,.1f} rows/s, {self.tokens:,} tokens, {self.dead:,} dead, "
            f"{left} left"
        )


class Progress(Protocol):
    """What a job tells whoever waits for it."""

    def stage(self, text: str) -> None:
        """Say that something other than embedding is being done."""
        ...

    def update(self, snapshot: Snapshot) -> None:
        """Take new numbers; called about twice a second."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, text: str) -> None:
        """Ignore it."""

    def update(self, snapshot: Snapshot) -> None:
        """Ignore it."""


class Lines:
    """Plain lines for logs: one at each stage, then one every few seconds and at the end."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._next_s = 0.0

    def stage(self, text: str) -> None:
        """Write the stage."""
        self._write(text)

    def update(self, snapshot: Snapshot) -> None:
        """Write the numbers, unless the last line is fresh."""
        now = self._clock()
        if now >= self._next_s or snapshot.rows_done == snapshot.rows_total:
            self._next_s = now + LINE_EVERY_S
            self._write(snapshot.describe())

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class Terminal:
    """A bar that is redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            console=Console(file=stream),
            transient=True,
        )
        self._task: TaskID = self._bars.add_task("", total=None, numbers="")
        self._bars.start()

    def stage(self, text: str) -> None:
        """Show the stage beside an idle bar."""
        self._bars.update(self._task, description=text, total=None, numbers="")

    def update(self, snapshot: Snapshot) -> None:
        """Move the bar."""
        self._bars.update(
            self._task,
            description="embedding",
            total=snapshot.rows_total,
            completed=snapshot.rows_done,
            numbers=snapshot.describe(),
        )

    def close(self) -> None:
        """Take the bar away."""
        self._bars.stop()


class ShowProgress:
    """A context that gives the progress display that fits stderr."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal: Terminal | None = None

    def __enter__(self) -> Progress:
        if not self._stream.isatty():
            return Lines(self._stream)
        self._terminal = Terminal(self._stream)
        return self._terminal

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal is not None:
            self._terminal.close()


def clock(seconds: float) -> str:
    """Return 3725 as 1:02:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
