"""How the rows of a step attend on a GPU: single tokens by a kernel, chunks by flash attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omai_ray.engines.device import to_device
from omai_ray.engines.flash import flash_attention


@dataclass(frozen=True, slots=True)
class Singles:
    """The first S rows of a step, one token each of sequences wherever they lie.

    starts: int64 [S], a sequence's first place. lengths: int32 [S], its tokens with the new one.
    """

    starts: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Chunks:
    """The other rows of a step, from `first` on: tokens that continue N sequences.

    places: int64, where each row's key and value go. bounds: int32 [N + 1], rows of each, counted
    from `first`. starts: int32 [N + 1], first places; the last is not read. seen: int32 [N], its
    tokens with these. most_rows, most_seen: the largest of each.
    """

    first: int
    places: Tensor
    bounds: Tensor
    starts: Tensor
    seen: Tensor
    most_rows: int
    most_seen: int

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """Store keys and values, and attend; float16 or bfloat16.

        query [T, H, D], key and value [T, K, D], out [T, H, D]; keys and values [places, K, D].
        """
        rows = slice(self.first, None)
        keys.index_copy_(0, self.places, key[rows])
        values.index_copy_(0, self.places, value[rows])
        out[rows] = flash_attention(
            *(query[rows], keys, values, self.bounds, self.starts),
            *(self.most_rows, self.most_seen),
            scale=scale,
            causal=True,
            window=window,
            seen=self.seen,
        )


def layout(
    pieces: Sequence[tuple[int, int, int]], device: torch.device
) -> tuple[Singles | None, Chunks | None]:
    """Return how pieces attend, each (first place, tokens before, tokens), singles before others.

    A single token after the first longer piece is a chunk too.
    """
    starts, past, rows = np.array(pieces, dtype=np.int64).T
    longer = np.flatnonzero(rows > 1)
    count = int(longer[0]) if len(longer) else len(rows)
    alone, rest = slice(count), slice(count, None)
    counts, seen = rows[rest], past[rest] + rows[rest]
    bounds = np.append(0, np.cumsum(counts))
    places = np.arange(bounds[-1]) + np.repeat((starts + past)[rest] - bounds[:-1], counts)
    first, lengths, placed, *numbers = to_device(
        [starts[alone], past[alone] + 1, places, bounds, np.append(starts[rest], 0), seen], device
    )
    singles = Singles(first, lengths.int()) if count else None
    if count == len(rows):
        return singles, None
    edges, firsts, lasts = (part.int() for part in numbers)
    most_rows, most_seen = int(counts.max()), int(seen.max())
    return singles, Chunks(count, placed, edges, firsts, lasts, most_rows, most_seen)
