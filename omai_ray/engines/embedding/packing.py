"""Where sequences lie that are laid end to end, without padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omai_ray.engines.device import to_device

Ids = npt.NDArray[np.int64]


def lengths_of(inputs: Sequence[Ids]) -> npt.NDArray[np.int64]:
    """Return how many tokens each input has."""
    return np.fromiter(map(len, inputs), dtype=np.int64, count=len(inputs))


def padded(inputs: Sequence[Ids], filler: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Return inputs one below the other, filled up: int64 [N, L]; and where none of it is filler.

    L is the longest input's length.
    """
    lengths = lengths_of(inputs)
    real = np.arange(lengths.max()) < lengths[:, None]
    rows = np.full(real.shape, filler, dtype=np.int64)
    rows[real] = np.concatenate(inputs)
    return rows, real


def round_up(number: int, steps: int) -> int:
    """Return the next number of a scale that has `steps` in each doubling, and all below twice it.

    Sizes that vary freely cost a kernel made and kept for each of them; so they are rounded.
    """
    step = max(1, (1 << (max(number, 1).bit_length() - 1)) // steps)
    return -(-number // step) * step


Group = tuple[int, int, int]  # sequences of one length: first token, sequences, tokens of each


@dataclass(frozen=True)
class Block:
    """Sequences of nearly equal length, to be padded to one size of few: [count, length].

    groups: those of one length, adjacent in the row of tokens. real: bool [count, length], False
    in padding, but True all through where a whole sequence is padding.
    """

    groups: list[Group]
    count: int
    length: int
    real: Tensor


class Packing:
    """Where sequences lie in a row of tokens. Those of equal length are best adjacent.

    lengths: int64 [N], tokens of each sequence, none of them 0. T is their sum.
    half: attend in bfloat16 on a CPU, whatever the states come in. between_layers: called in every
    layer; what it raises ends the forward.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.int64],
        device: torch.device,
        *,
        half: bool = False,
        between_layers: Callable[[], None] | None = None,
    ) -> None:
        self.lengths = lengths
        self.longest = int(lengths.max())
        self.half = half
        self.between_layers = between_layers
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.device = device
        edges = np.append(self.starts, self.ends[-1])
        # Where sequences start, and where the last ends: int32 [N + 1].
        self.boundaries = to_device([edges], device)[0].int()
        self._windows: dict[tuple[int, int, bool], Tensor] = {}

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token in its sequence, int64 [T]."""
        flat = np.arange(self.ends[-1]) - np.repeat(self.starts, self.lengths)
        return to_device([flat], self.device)[0]

    @cached_property
    def groups(self) -> list[Group]:
        """Runs of sequences of one length."""
        changes = np.flatnonzero(np.diff(self.lengths)) + 1
        firsts = np.concatenate(([0], changes))
        counts = np.diff(np.concatenate((firsts, [len(self.lengths)])))
        return [
            (int(self.starts[first]), int(count), int(self.lengths[first]))
            for first, count in zip(firsts, counts, strict=True)
        ]

    @cached_property
    def blocks(self) -> list[Block]:
        """Runs of sequences whose lengths round up to the same."""
        return [
            _block(list(groups), length)
            for length, groups in itertools.groupby(self.groups, lambda group: _padded(group[2]))
        ]

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


def _padded(length: int) -> int:
    return 8 * round_up(-(-length // 8), 32)


def _block(groups: list[Group], length: int) -> Block:
    lengths = np.repeat([group[2] for group in groups], [group[1] for group in groups])
    count = round_up(len(lengths), 4)
    real = np.ones((count, length), dtype=bool)
    real[: len(lengths)] = np.arange(length) < lengths[:, None]
    return Block(groups, count, length, torch.from_numpy(real))
