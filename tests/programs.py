"""Programs and optional libraries that tests run for real."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from typing import NoReturn

import pytest


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
