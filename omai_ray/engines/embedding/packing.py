"""Where sequences lie that are laid end to end, without padding."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Packing:
    """Where sequences lie in a row of tokens. Those of equal length are best adjacent.

    lengths: int64 [N], tokens of each sequence, none of them 0. T is their sum.
    half: attend in bfloat16 on a CPU, whatever the states come in.
    """

    def __init__(
        self, lengths: npt.NDArray[np.int64], device: torch.device, *, half: bool = False
    ) -> None:
        self.lengths = lengths
        self.half = half
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.device = device
        self._windows: dict[tuple[int, int, bool], Tensor] = {}

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token in its sequence, int64 [T]."""
        flat = np.arange(self.ends[-1]) - np.repeat(self.starts, self.lengths)
        return torch.from_numpy(flat).to(self.device)

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """Runs of sequences of one length: (first token, sequences, tokens of each)."""
        changes = np.flatnonzero(np.diff(self.lengths)) + 1
        firsts = np.concatenate(([0], changes))
        counts = np.diff(np.concatenate((firsts, [len(self.lengths)])))
        return [
            (int(self.starts[first]), int(count), int(self.lengths[first]))
            for first, count in zip(firsts, counts, strict=True)
        ]

    @cached_property
    def boundaries(self) -> Tensor:
        """Where sequences start, and where the last ends: int32 [N + 1]."""
        return torch.from_numpy(np.append(self.starts, self.ends[-1]).astype(np.int32)).to(
            self.device
        )

    def window(self, length: int, width: int, causal: bool) -> Tensor:
        """Return bool [length, length], True where a token (row) may look at another.

        width: the distance from which on it may not, as attention functions are given it.
        Source: transformers' modeling_flash_attention_utils, which takes one off for torch.
        """
        key = (length, width, causal)
        if key not in self._windows:
            places = torch.arange(length, device=self.device)
            distance = places[:, None] - places[None, :]
            seen = distance.abs() < width
            if causal:
                seen &= distance >= 0
            self._windows[key] = seen
        return self._windows[key]
