"""Where a model runs, in which dtype, on how many threads."""

from __future__ import annotations

import torch

from omai_ray.catalog import Dtype
from omai_ray.errors import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(num_gpus: float) -> torch.device:
    """Return the GPU where one is reserved, else the CPU. Raises ConfigError where it is absent."""
    if num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"num_gpus is {num_gpus}, and torch sees no GPU on this node")
    return torch.device("cuda")


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in: `auto` is float32 on a CPU, bfloat16 on a GPU."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return _DTYPES[dtype]


def limit_threads(num_cpus: float) -> None:
    """Compute on as many threads as CPUs are reserved: more would fight the neighbours for them."""
    torch.set_num_threads(max(1, int(num_cpus)))
