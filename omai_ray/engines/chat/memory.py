"""How much memory the keys and values of sequences may take."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError

# Of the memory that is free once the weights are loaded.
_SHARE_OF_FREE = {"cpu": 0.4, "cuda": 0.9}
_log = logging.getLogger(__name__)


def affordable_places(
    spec: ModelSpec, longest: int, each: int, device: torch.device, *, loaded_bytes: int = 0
) -> int:
    """Return for how many tokens there is memory: enough for one sequence, at most for all.

    longest: places of the longest sequence. each: bytes of a place. loaded_bytes: what the model
    holds on the GPU already that is not torch's. Raises ConfigError where not even one fits.
    """
    if spec.kv_cache_gib is not None:
        room = int(spec.kv_cache_gib * 2**30)
    else:
        free = _free_bytes(device, spec.memory_share, loaded_bytes)
        room = int(free * _SHARE_OF_FREE[device.type])
    places = min(longest * spec.max_running_requests, room // each)
    if places < longest:
        raise ConfigError(
            f"model '{spec.name}': the keys and values of one sequence of {longest} tokens "
            f"need {longest * each / 2**30:.2f} GiB, and there are {room / 2**30:.2f}; lower "
            "`context` or raise `kv_cache_gib`"
        )
    _log.info(
        "model '%s': room for the keys and values of %d tokens, %.2f GiB",
        *(spec.name, places, places * each / 2**30),
    )
    return places


def _free_bytes(device: torch.device, memory_share: float, loaded_bytes: int) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = int(total * memory_share) - torch.cuda.memory_allocated(device) - loaded_bytes
        return max(0, min(free, own))
    return int(min(_available(), _left_in_container(Path("/sys/fs/cgroup"))))


def _available() -> int:
    """Return the machine's memory that can be had without swapping, in bytes."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_container(root: Path) -> float:
    """Return what a container's limit leaves, in bytes; infinity where there is none.

    Beyond it the kernel kills the process, however much the machine has. Read from cgroups, version
    2 or 1; cached files that can be dropped are not counted as used.
    """
    for folder, limit, used in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most = int((folder / limit).read_text())
            now = int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # `max` is no number: no limit
            continue
        return most - now + int(stat.get("inactive_file", 0))
    return math.inf
