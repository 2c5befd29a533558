"""Steps of single tokens as CUDA graphs: a launch for a whole step instead of one for each kernel.

A graph is for a number of rows; those that a step has not are computed as well, on a place of
nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omai_ray.engines.chat.gpu_attention import Singles

# ids [1, T], positions [T], how the rows attend -> logits [T, V]
Forward = Callable[[Tensor, Tensor, Singles], Tensor]
_WARM_UPS = 2


def sizes(most: int) -> list[int]:
    """Return the numbers of rows that have a graph: those of 64 and more waste a fifth at most."""
    found = [1]
    while found[-1] < most:
        last = found[-1]
        step = last if last < 8 else max(8, 1 << (last.bit_length() - 3))
        found.append(min(last + step, most))
    return found


class DecodeGraphs:
    """Computes steps of up to `most` single tokens.

    spare: a place that belongs to no sequence. Raises RuntimeError where the model cannot be
    captured: a forward that waits for the GPU, for example.
    """

    def __init__(self, forward: Forward, most: int, spare: int, device: torch.device) -> None:
        self._sizes = sizes(most)
        self._spare = spare
        self._given = torch.empty(4, most, dtype=torch.long).pin_memory()
        self._table: np.ndarray[tuple[int, int], np.dtype[np.int64]] = self._given.numpy()
        self._inputs = torch.empty(4, most, dtype=torch.long, device=device)
        self._lengths = torch.empty(most, dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._fill([], most)
        self._inputs.copy_(self._given)
        pool = None
        for size in reversed(self._sizes):  # the largest first: smaller ones fit in its memory
            graph = torch.cuda.CUDAGraph()
            stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._compute(forward, size)
            torch.cuda.current_stream(device).wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                logits = self._compute(forward, size)
            pool = pool or graph.pool()
            self._graphs[size] = (graph, logits)

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def run(self, rows: Sequence[tuple[int, int, int]]) -> Tensor:
        """Return float32 [S, V] for S rows of (token, its position, the sequence's first place).

        It is overwritten by the next call.
        """
        size = next(size for size in self._sizes if size >= len(rows))
        self._fill(rows, size)
        self._inputs.copy_(self._given, non_blocking=True)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(rows)]

    def _fill(self, rows: Sequence[tuple[int, int, int]], size: int) -> None:
        table = self._table
        if rows:
            table[:3, : len(rows)] = np.array(rows, dtype=np.int64).T
        table[:2, len(rows) : size] = 0
        table[2, len(rows) : size] = self._spare
        table[3] = table[1] + 1

    def _compute(self, forward: Forward, size: int) -> Tensor:
        ids, positions, starts, lengths = self._inputs[:, :size]
        own = self._lengths[:size]
        own.copy_(lengths)
        return forward(ids[None], positions, Singles(starts, own)).float()
