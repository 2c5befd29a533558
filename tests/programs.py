"""Programs that tests run for real."""

from __future__ import annotations

import os
import shutil

import pytest


def require_program(name: str, *, package: str) -> None:
    """Skip where a program is absent, saying how to get it; in CI its absence is a failure."""
    if shutil.which(name) is not None:
        return
    message = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
