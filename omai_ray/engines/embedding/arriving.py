"""Results of batches on their way from a GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Arriving:
    """Puts rows of batches into `vectors`, float32 [N, D].

    From a GPU they are copied while it computes the next batch: each is waited for once another
    was started, so the GPU has always work. On a CPU they are there at once.
    """

    def __init__(self, vectors: npt.NDArray[np.float32], device: torch.device) -> None:
        self._vectors = vectors
        self._on_cpu = device.type == "cpu"
        self._last: tuple[npt.NDArray[np.int64], Tensor, torch.cuda.Event] | None = None

    def add(self, rows: npt.NDArray[np.int64], made: Tensor) -> None:
        """Take what was made for these rows, float32 [rows, D], from one thread on a GPU."""
        if self._on_cpu:
            self._vectors[rows] = made.numpy()
            return
        copied = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        copied.copy_(made, non_blocking=True)
        ready = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        ready.record()
        self.finish()
        self._last = rows, copied, ready

    def finish(self) -> None:
        """Wait for what was added last."""
        if self._last is not None:
            rows, copied, ready = self._last
            self._last = None
            ready.synchronize()
            self._vectors[rows] = copied.numpy()
