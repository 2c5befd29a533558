"""Programs and optional libraries that tests run for real."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.patience import eventually


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did; none that has ended."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        parent = _parent(int(process.name))
        if parent is not None:
            children.setdefault(parent, []).append(int(process.name))
    found, left = [], [pid]
    while left:
        more = children.get(left.pop(), [])
        found += more
        left += more
    return found


def _parent(pid: int) -> int | None:
    """Return the process that a process is a child of; None where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, parent = stat.rpartition(")")[2].split()[:2]
    return None if state == "Z" else int(parent)


def niceness() -> int:
    """Return that of the thread that asks; on Linux each has its own."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def kill_all(pid: int) -> None:
    """End a process and all that it has started at once, as a machine that loses power does."""
    processes = [pid, *descendants(pid)]
    for each in processes:
        with suppress(ProcessLookupError):  # it ended with those before it
            os.kill(each, signal.SIGKILL)
    eventually(lambda: all(_parent(each) is None for each in processes))


def require_program(name: str, *, package: str) -> None:
    """Skip where a program is absent, saying how to get it; in CI its absence is a failure."""
    if shutil.which(name) is None:
        lacking(f"{name} is not installed: apt-get install {package}")


def require_module(name: str, *, extra: str) -> None:
    """Skip where an extra's module is absent, saying how to get it; in CI that is a failure."""
    if importlib.util.find_spec(name) is None:
        lacking(f"{name} is not installed: pip install 'omai-ray[{extra}]'")


def lacking(message: str) -> NoReturn:
    """Skip for want of something, saying how to get it; in CI fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
