"""How much memory there is for keys and values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from omai_ray.engines.chat.memory import _available, _left_in_container


def test_a_machine_has_some_memory() -> None:
    """More than nothing, less than a petabyte."""
    assert 2**20 < _available() < 2**50


@pytest.mark.parametrize(
    ("folder", "limit", "used"),
    [
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, folder: str, limit: str, used: str) -> None:
    """Less what is used, but for cached files."""
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / limit).write_text("1000\n")
    (place / used).write_text("700\n")
    (place / "memory.stat").write_text("anon 600\ninactive_file 100\n")
    assert _left_in_container(tmp_path) == 400


def test_without_a_limit_the_machine_decides(tmp_path: Path) -> None:
    """No cgroups, or none with a limit."""
    assert _left_in_container(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("inactive_file 100\n")
    assert _left_in_container(tmp_path) == math.inf
