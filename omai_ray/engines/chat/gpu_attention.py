"""How the rows of a step attend on a GPU: single tokens by a kernel, chunks by flash attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    count = next((at for at, piece in enumerate(pieces) if piece[2] > 1), len(pieces))
    singles = chunks = None
    if count:
        table = torch.tensor([(start, past + 1) for start, past, _ in pieces[:count]])
        table = table.pin_memory().to(device, non_blocking=True)
        singles = Singles(table[:, 0].contiguous(), table[:, 1].int())
    rest = pieces[count:]
    if rest:
        bounds = [0]
        for _, _, rows in rest:
            bounds.append(bounds[-1] + rows)
        places = torch.cat(
            [torch.arange(start + past, start + past + rows) for start, past, rows in rest]
        )
        starts = [start for start, _, _ in rest]
        seen = [past + rows for _, past, rows in rest]
        whole = torch.cat([places, torch.tensor([*bounds, *starts, 0, *seen])])
        whole = whole.pin_memory().to(device, non_blocking=True)
        numbers = whole[len(places) :].int()
        first, second, third = torch.split(numbers, [len(rest) + 1, len(rest) + 1, len(rest)])
        chunks = Chunks(
            count,
            *(whole[: len(places)], first, second, third),
            *(max(rows for _, _, rows in rest), max(seen)),
        )
    return singles, chunks
