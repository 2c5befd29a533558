"""Attention over sequences at different places of their own, whose past lies in an arena.

All tokens of a step are one row, whatever they belong to; only attention must tell them apart. It
is registered with transformers under IMPLEMENTATION, for any decoder whose attention goes through
its attention interface. An implementation without a mask function gets no mask built for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

IMPLEMENTATION = "omai_slots"
_UNSUPPORTED = ("softcap", "position_bias", "s_aux")


class CannotServeError(Exception):
    """This model's attention needs more than is passed on here."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence: `count` rows of the step from `row` on, which continue its extent.

    start: the extent's first place. past: its tokens that were computed before.
    """

    row: int
    count: int
    start: int
    past: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """One token each of sequences whose extents lie side by side, `size` places each.

    lengths: tokens of each with the new one.
    """

    row: int
    start: int
    size: int
    lengths: tuple[int, ...]


class Step:
    """Which rows of a step attend to what, and where their own keys and values go.

    places: int64 [T], the place in the arena of each row.
    """

    def __init__(
        self, chunks: Sequence[Chunk], neighbours: Sequence[Neighbours], places: Tensor
    ) -> None:
        self.chunks = chunks
        self.neighbours = neighbours
        self.places = places
        self._masks: dict[tuple[Any, int | None], Tensor | None] = {}

    def chunk_mask(self, chunk: Chunk, window: int | None) -> Tensor | None:
        """Return bool [count, past + count], True where looked at; None for simply causal."""
        key = (chunk, window)
        if key not in self._masks:
            total = chunk.past + chunk.count
            whole = window is None or total <= window
            self._masks[key] = None
            if chunk.count > 1 and (chunk.past or not whole):
                rows = torch.arange(chunk.past, total, device=self.places.device)[:, None]
                columns = torch.arange(total, device=self.places.device)
                self._masks[key] = _seen(rows, columns, window)
            elif not whole:
                columns = torch.arange(total, device=self.places.device)
                self._masks[key] = _seen(columns[-1:, None], columns, window)
        return self._masks[key]

    def neighbour_mask(self, group: Neighbours, window: int | None, like: Tensor) -> Tensor | None:
        """Return [S, 1, 1, L], 0 where looked at and -inf elsewhere; None where all is."""
        key = (group, window)
        if key not in self._masks:
            longest = max(group.lengths)
            self._masks[key] = None
            if longest != min(group.lengths) or (window is not None and longest > window):
                ends = torch.tensor(group.lengths, device=like.device)[:, None] - 1
                seen = _seen(ends, torch.arange(longest, device=like.device), window)
                mask = like.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))
                self._masks[key] = mask[:, None, None]
        return self._masks[key]


def _seen(rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    seen = columns <= rows
    return seen if window is None else seen & (rows - columns < window)


class KeyValues:
    """Keys and values of all layers: [places, K, D] each, made at a layer's first use."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_per_place(self) -> int:
        """Bytes of one token in the layers used so far."""
        return sum(
            part[0].numel() * part.element_size() for pair in self._layers.values() for part in pair
        )

    def put(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value [K, T, D] of a layer, and return all of it, [places, K, D]."""
        if layer not in self._layers:
            self._layers[layer] = (self._make(key), self._make(value))
        keys, values = self._layers[layer]
        keys.index_copy_(0, places, key.transpose(0, 1))
        values.index_copy_(0, places, value.transpose(0, 1))
        return keys, values

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy places, which may overlap."""
        for pair in self._layers.values():
            for part in pair:
                part[target : target + count] = part[source : source + count].clone()

    def _make(self, states: Tensor) -> Tensor:
        """Return zeros: what is masked is multiplied all the same, and must be finite.

        On a CPU the kernel gives zeroed pages as they are used, so that room costs nothing yet.
        """
        shape = (self.places, states.shape[0], states.shape[2])
        if states.device.type != "cpu":
            return states.new_zeros(shape)
        size = math.prod(shape) * states.element_size()
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(states.dtype).view(shape)


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    step: Step | None = None,
    memory: KeyValues | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend to each sequence's past and to itself.

    query [1, H, T, D]; key and value [1, K, T, D], H a multiple of K. Returns [1, T, H, D].
    Raises CannotServeError where the model asks for what is not supported here.
    """
    unsupported = [name for name in _UNSUPPORTED if options.get(name) is not None]
    layer = getattr(module, "layer_idx", None)
    if step is None or memory is None or attention_mask is not None or layer is None or unsupported:
        raise CannotServeError(
            f"its attention uses {', '.join(unsupported) or 'a mask of its own'}"
        )
    keys, values = memory.put(layer, step.places, key[0], value[0])
    heads, tokens = query.shape[1:3]
    out = query.new_empty(tokens, heads, value.shape[3])
    for group in step.neighbours:
        count, longest = len(group.lengths), max(group.lengths)
        rows = slice(group.row, group.row + count)
        own = slice(group.start, group.start + count * group.size)
        k, v = (
            part[own].view(count, group.size, *part.shape[1:])[:, :longest].transpose(1, 2)
            for part in (keys, values)
        )
        # The queries that share a key head are its rows: fewer, larger products.
        q = query[0, :, rows].transpose(0, 1).reshape(count, k.shape[1], -1, query.shape[3])
        mask = step.neighbour_mask(group, sliding_window, query)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        out[rows] = attended.reshape(count, heads, -1)
    for chunk in step.chunks:
        rows = slice(chunk.row, chunk.row + chunk.count)
        own = slice(chunk.start, chunk.start + chunk.past + chunk.count)
        mask = step.chunk_mask(chunk, sliding_window)
        attended = scaled_dot_product_attention(
            query[:, :, rows],
            keys[own].transpose(0, 1)[None],
            values[own].transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None and chunk.count > 1,
            scale=scaling,
            enable_gqa=heads != keys.shape[1],
        )
        out[rows] = attended[0].transpose(0, 1)
    return out[None], None


AttentionInterface.register(IMPLEMENTATION, slot_attention)
