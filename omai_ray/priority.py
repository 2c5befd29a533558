"""Whose work a model does first: that of people who wait, or that of batches."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

Priority = Literal["online", "batch"]
PRIORITIES: tuple[Priority, ...] = ("online", "batch")  # what comes first is served first
_TURN = 20
_PART = 8
_NICEST = 19
NICENESS_VARIABLE = "OMAI_COMPUTE_NICENESS"
_COMPUTING = "10"  # with 3, first tokens beside a batch came a third later
_BULK = 9  # so much more: a CPU that both want is a server's for seven eighths of the time


class Turns:
    """Gives each step of an engine to one class of work.

    While there is online work, it has all steps but one in 20: so batches never stand still
    altogether, whatever the traffic.
    """

    def __init__(self) -> None:
        self._missed = 0

    def next(self, *, online: bool, batch: bool) -> Priority:
        """Return whose step is next. online, batch: whether there is work of theirs."""
        if not batch:
            self._missed = 0
        elif not online or self._missed >= _TURN - 1:
            self._missed = 0
            return "batch"
        else:
            self._missed += 1
        return "online"


class GaveWay(Exception):
    """A batch's step was left undone, because somebody online has come."""


def step_bound(priority: Priority, step_tokens: int) -> int:
    """Return how many tokens a step may have, of the most that an engine runs in one go.

    A batch's steps are short: whoever comes meanwhile waits for the end of one.
    """
    return step_tokens if priority == "online" else max(1, step_tokens // _PART)


def give_way_to_servers() -> None:
    """Lower this process's priority, below that of a server's threads that compute."""
    niceness = min(_NICEST, os.nice(0) + computing_niceness(os.environ) + _BULK)
    if sys.platform != "linux":
        os.nice(niceness - os.nice(0))
        return
    for thread in Path("/proc/self/task").iterdir():  # each has its own, Ray's among them
        with suppress(OSError):  # it has ended, or may not
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)


def give_way_to_callers() -> None:
    """Lower this thread's priority, and so that of threads it starts: it computes on all CPUs.

    Every process on a request's way would wait for its turn beside it, longer than it works. By
    how much, OMAI_COMPUTE_NICENESS says.
    """
    if sys.platform == "linux":  # elsewhere only processes have a priority
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + computing_niceness(os.environ)
        with suppress(OSError):  # where a sandbox forbids it, requests are answered all the same
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def computing_niceness(environment: Mapping[str, str]) -> int:
    """Return by how much threads that compute are nicer. Raises ValueError for no such number."""
    given = environment.get(NICENESS_VARIABLE, _COMPUTING)
    if not given.isdecimal() or int(given) > _NICEST:
        raise ValueError(f"{NICENESS_VARIABLE}: {given!r}; a whole number from 0 to {_NICEST}")
    return int(given)


def usable_cpus() -> int:
    """Return the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
