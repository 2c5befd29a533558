"""Where a model runs, in which dtype, on how many threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omai_ray.catalog import Dtype
from omai_ray.errors import ConfigError

# M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 2**30
_HEAP_BYTES = 2**26  # of a thread's heap; with that much asked for, an empty one is kept too
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(num_gpus: float, memory_share: float = 1.0) -> torch.device:
    """Return the GPU where one is reserved, else the CPU. Raises ConfigError where it is absent.

    memory_share: of the GPU's memory, what torch may take in this process; beyond it an allocation
    fails here, and not in a neighbour on the same GPU.
    """
    if num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"num_gpus is {num_gpus}, and torch sees no GPU on this node")
    device = torch.device("cuda")
    if memory_share < 1:
        torch.cuda.set_per_process_memory_fraction(memory_share, device)
    return device


def choose_dtype(dtype: Dtype, device: torch.device, *, bfloat16_cpu: bool) -> torch.dtype:
    """Return the dtype to compute in: `auto` is bfloat16 on a GPU, and float32 on a CPU.

    bfloat16_cpu: `auto` is bfloat16 on a CPU too, where it has the arithmetic. With `int8` it is
    what the rest is computed in, float32. Raises ConfigError where int8 has no hardware.
    """
    if dtype == "int8":
        if device.type != "cpu" or not has_int8():
            raise ConfigError("dtype int8 needs a CPU with VNNI (and num_gpus: 0); use auto")
        return torch.float32
    if dtype != "auto":
        return _DTYPES[dtype]
    halved = device.type != "cpu" or (bfloat16_cpu and has_bfloat16())
    return torch.bfloat16 if halved else torch.float32


def has_bfloat16() -> bool:
    """Tell whether the CPU multiplies bfloat16 itself; emulated, it is slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def has_int8() -> bool:
    """Tell whether the CPU multiplies 8-bit values without their sums overflowing."""
    found = torch.cpu.get_capabilities()
    vnni = any(found.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return vnni and has_onednn()


def has_onednn() -> bool:
    """Tell whether this torch has oneDNN, whose operators work on reordered weights."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def to_device(arrays: Sequence[npt.NDArray[np.int64]], device: torch.device) -> list[Tensor]:
    """Return arrays as tensors on a device: one copy for all, which a GPU need not wait for."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type != "cpu":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return list(torch.split(joined, [len(array) for array in arrays]))


def limit_threads(num_cpus: float) -> None:
    """Compute on as many threads as CPUs are reserved: more would fight the neighbours for them."""
    torch.set_num_threads(max(1, int(num_cpus)))


def keep_freed_memory() -> None:
    """Have this process keep memory between forwards, where its C library is glibc.

    Given back and fetched again, each page of it is cleared by the kernel at its first use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_TOP_PAD, _HEAP_BYTES)
