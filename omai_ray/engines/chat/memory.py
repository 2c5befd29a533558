"""How much memory the keys and values of sequences may take."""

from __future__ import annotations

import logging
import os

import torch

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError

# Of the memory that is free once the weights are loaded.
_SHARE_OF_FREE = {"cpu": 0.4, "cuda": 0.9}
_log = logging.getLogger(__name__)


def affordable_places(spec: ModelSpec, longest: int, each: int, device: torch.device) -> int:
    """Return for how many tokens there is memory: enough for one sequence, at most for all.

    longest: places of the longest sequence. each: bytes of a place. Raises ConfigError where not
    even one fits.
    """
    if spec.kv_cache_gib is not None:
        room = int(spec.kv_cache_gib * 2**30)
    else:
        room = int(_free_bytes(device) * _SHARE_OF_FREE[device.type])
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


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
