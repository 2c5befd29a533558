"""How much memory there is for keys and values."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.memory import _available, _free_bytes, _left_in_container
from omai_ray.engines.device import choose_device


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


def test_a_part_of_a_gpu_is_a_part_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less what the model holds of it already, and never more than is free."""
    gib = 2**30
    free = 60 * gib
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10 * gib)
    device = torch.device("cuda")
    assert _free_bytes(device, 0.25, 0) == 10 * gib
    assert _free_bytes(device, 0.25, 4 * gib) == 6 * gib
    assert _free_bytes(device, 0.05, 0) == 0
    assert _free_bytes(device, 1.0, 0) == 60 * gib


def test_torch_takes_no_more_than_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole GPU needs no cap."""
    capped: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, _: capped.append(part)
    )
    for num_gpus, share in ((0.0, None), (1.0, None), (0.3, None), (0.3, 0.5)):
        spec = ModelSpec(
            name="m", task="chat", source="/x", num_gpus=num_gpus, gpu_memory_share=share
        )
        choose_device(spec.num_gpus, spec.memory_share)
    assert capped == [0.3, 0.5]
