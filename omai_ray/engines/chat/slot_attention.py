"""Attention over sequences at different places of their own, whose past lies in an arena.

All tokens of a step are one row, whatever they belong to; only attention must tell them apart. It
is registered with transformers under IMPLEMENTATION, for any decoder whose attention goes through
its attention interface. An implementation without a mask function gets no mask built for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from omai_ray.engines.chat.gpu_attention import Chunks, Singles
from omai_ray.engines.device import to_device
from omai_ray.engines.native.kernels import WIDEST_HEAD, Kernels

IMPLEMENTATION = "omai_slots"
_UNSUPPORTED = ("softcap", "position_bias", "s_aux")
_BLOCK_ROWS = 128
Made = TypeVar("Made")


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


@dataclass(frozen=True, slots=True)
class Seen:
    """What a layer attended with: query [1, H, T, D], key and value [1, K, T, D]."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int | None


class Step:
    """Which rows of a step attend to what; all of these together are all of its rows.

    half: attend by products in bfloat16, faster on a CPU that multiplies it. kernels: those of the
    device, for single tokens, where it has them; singles need them. packed: chunks of a GPU.
    between_layers: called in every layer; what it raises ends the step. seen: where what each layer
    attends with is noted, by the layer's number, if anybody wants to know.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk] = (),
        neighbours: Sequence[Neighbours] = (),
        *,
        half: bool = False,
        kernels: Kernels | None = None,
        singles: Singles | None = None,
        packed: Chunks | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> None:
        self.seen: dict[int, Seen] | None = None
        self.chunks = chunks
        self.neighbours = neighbours
        self.half = half
        self.kernels = kernels
        self.singles = singles
        self.packed = packed
        self.between_layers = between_layers
        self._kept: dict[Hashable, Any] = {}  # what all layers ask for

    @property
    def single(self) -> Neighbours | None:
        """The one sequence of a step that is one token, None for any other step."""
        alone = not self.chunks and len(self.neighbours) == 1
        return self.neighbours[0] if alone and len(self.neighbours[0].lengths) == 1 else None

    def extents(self, group: Neighbours, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where a group's sequences start, int64 [S], and their lengths, int32 [S]."""

        def make() -> tuple[Tensor, Tensor]:
            starts = torch.arange(len(group.lengths), device=device) * group.size + group.start
            return starts, torch.tensor(group.lengths, dtype=torch.int32, device=device)

        return self._keep(group, make)

    def chunk_mask(self, chunk: Chunk, window: int | None, device: torch.device) -> Tensor | None:
        """Return bool [count, past + count], True where looked at; None for simply causal."""

        def make() -> Tensor | None:
            total = chunk.past + chunk.count
            whole = window is None or total <= window
            if whole and (chunk.count == 1 or not chunk.past):
                return None
            return _seen(chunk.past, total, window, device)

        return self._keep((chunk, window), make)

    def block_mask(
        self, start: int, end: int, window: int | None, heads: int, like: Tensor
    ) -> Tensor:
        """Return [1, heads * (end - start), end], the same for each head that shares a key.

        0 where the tokens from `start` on look at, -inf elsewhere.
        """

        def make() -> Tensor:
            mask = _additive(_seen(start, end, window, like.device), like)
            return mask.expand(heads, -1, -1).reshape(1, -1, end)

        return self._keep((start, end, window, heads), make)

    def neighbour_mask(self, group: Neighbours, window: int | None, like: Tensor) -> Tensor | None:
        """Return [S, L], 0 where looked at and -inf elsewhere; None where all is."""

        def make() -> Tensor | None:
            longest = max(group.lengths)
            if longest == min(group.lengths) and (window is None or longest <= window):
                return None
            ends = torch.tensor(group.lengths, device=like.device)[:, None] - 1
            return _additive(_look(ends, torch.arange(longest, device=like.device), window), like)

        return self._keep((group, window), make)

    def _keep(self, key: Hashable, make: Callable[[], Made]) -> Made:
        if key not in self._kept:
            self._kept[key] = make()
        made: Made = self._kept[key]
        return made


def _seen(start: int, end: int, window: int | None, device: torch.device) -> Tensor:
    """Return bool [end - start, end], True where a token from `start` on looks at."""
    columns = torch.arange(end, device=device)
    return _look(columns[start:, None], columns, window)


def _look(rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    seen = columns <= rows
    return seen if window is None else seen & (rows - columns < window)


def _additive(seen: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))


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

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values of a layer, [places, K, D], for new ones [T, K, D]."""
        if index not in self._layers:
            self._layers[index] = (self._make(key), self._make(value))
        return self._layers[index]

    def known(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Return all keys and values of a layer, None before its first use."""
        return self._layers.get(index)

    def copy(self, copies: Iterable[tuple[int, int, int]]) -> None:
        """Copy places, in order, each (source, target, count), which may overlap."""
        parts = [part for pair in self._layers.values() for part in pair]
        if not parts or parts[0].device.type == "cpu":
            for source, target, count in copies:
                for part in parts:
                    part[target : target + count] = part[source : source + count].clone()
            return
        for group in _independent(copies):  # few launches, each of many places
            read = [np.arange(source, source + count) for source, _, count in group]
            written = [np.arange(target, target + count) for _, target, count in group]
            sources, targets = to_device(
                [np.concatenate(read), np.concatenate(written)], parts[0].device
            )
            for part in parts:
                part.index_copy_(0, targets, part.index_select(0, sources))

    def _make(self, states: Tensor) -> Tensor:
        """Return zeros: what is masked is multiplied all the same, and must be finite.

        On a CPU the kernel gives zeroed pages as they are used, so that room costs nothing yet.
        """
        shape = (self.places, *states.shape[1:])
        if states.device.type != "cpu":
            return states.new_zeros(shape)
        size = math.prod(shape) * states.element_size()
        return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(states.dtype).view(shape)


class RandomKeyValues(KeyValues):
    """Keys and values that are there already, random, the same ones in all layers of a size."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self._made: dict[tuple[torch.Size, torch.Size], tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValues`."""
        if index not in self._layers:
            sizes = (key.shape[1:], value.shape[1:])
            if sizes not in self._made:
                self._made[sizes] = (self._random(key), self._random(value))
            self._layers[index] = self._made[sizes]
        return self._layers[index]

    def _random(self, states: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.places, *states.shape[1:], generator=generator).to(states)


def _independent(copies: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield copies, in order, in groups in which none reads or writes what another has written."""
    group: list[tuple[int, int, int]] = []
    for source, target, count in copies:
        written = [(other, other + size) for _, other, size in group]
        touched = [(source, source + count), (target, target + count)]
        if any(low < end and first < high for low, high in written for first, end in touched):
            yield group
            group = []
        group.append((source, target, count))
    if group:
        yield group


def slot_attention(
    module: Any,
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
    if step.between_layers is not None:
        step.between_layers()
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    keys, values = memory.layer(layer, k, v)
    scale = q.shape[2] ** -0.5 if scaling is None else scaling
    if step.seen is not None:
        step.seen[layer] = Seen(query, key, value, scale, sliding_window)
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    fits = k.shape[2] == v.shape[2] <= WIDEST_HEAD
    if step.singles is not None:
        if step.kernels is None or not fits:
            raise CannotServeError(f"its heads are {k.shape[2]} and {v.shape[2]} wide")
        rows = slice(0, len(step.singles.starts))
        singles = (step.singles.starts, step.singles.lengths)
        step.kernels.attend(
            *(q[rows], k[rows], v[rows], keys, values),
            *(*singles, scale, sliding_window, out[rows]),
        )
    if step.packed is not None:
        step.packed.attend(q, k, v, keys, values, scale, sliding_window, out)
    for group in step.neighbours:
        rows = slice(group.row, group.row + len(group.lengths))
        alone = len(group.lengths) == len(q)  # a step's usual case, without the cost of slices
        own = (q, k, v) if alone else (q[rows], k[rows], v[rows])
        place = out if alone else out[rows]
        if step.kernels is not None and fits:
            extents = step.extents(group, q.device)
            step.kernels.attend(*own, keys, values, *extents, scale, sliding_window, place)
        else:
            place.copy_(_attend_neighbours(*own, keys, values, step, group, scale, sliding_window))
    for chunk in step.chunks:
        rows = slice(chunk.row, chunk.row + chunk.count)
        first = chunk.start + chunk.past
        keys[first : first + chunk.count] = k[rows]
        values[first : first + chunk.count] = v[rows]
        seen = slice(chunk.start, first + chunk.count)
        past = (keys[seen].transpose(0, 1), values[seen].transpose(0, 1))
        _attend_chunk(query[0, :, rows], *past, step, chunk, scale, sliding_window, out[rows])
    return out[None], None


def _attend_neighbours(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Step,
    group: Neighbours,
    scale: float,
    window: int | None,
) -> Tensor:
    """Do what the kernel `attend` does, by torch's operators; returns [S, H, D]."""
    count, heads = query.shape[:2]
    starts, lengths = step.extents(group, query.device)
    places = starts + lengths - 1
    keys.index_copy_(0, places, key)
    values.index_copy_(0, places, value)
    own = slice(group.start, group.start + count * group.size)
    k, v = (
        part[own].view(count, group.size, *part.shape[1:])[:, : max(group.lengths)].transpose(1, 2)
        for part in (keys, values)
    )
    # The queries that share a key head are its rows: fewer, larger products.
    q = query.reshape(count, k.shape[1], -1, query.shape[2])
    mask = step.neighbour_mask(group, window, query)
    if mask is not None:
        mask = mask[:, None, None]
    attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return attended.reshape(count, heads, -1)


def _attend_chunk(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    step: Step,
    chunk: Chunk,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """Attend with a chunk: query [H, T, D], key and value [K, past + T, D] -> out [T, H, D]."""
    if not step.half:
        mask = step.chunk_mask(chunk, window, query.device)
        attended = scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=mask,
            is_causal=mask is None and chunk.count > 1,
            scale=scale,
            enable_gqa=query.shape[0] != key.shape[0],
        )
        out.copy_(attended[0].transpose(0, 1))
        return
    heads, shared = key.shape[0], query.shape[0] // key.shape[0]
    for first in range(0, chunk.count, _BLOCK_ROWS):  # what all of a block do not see is left out
        end = min(first + _BLOCK_ROWS, chunk.count)
        start, seen = chunk.past + first, chunk.past + end
        mask = step.block_mask(start, seen, window, shared, query)
        q = query[:, first:end].reshape(heads, -1, query.shape[2])
        attended = _attend_half(q, key[:, :seen], value[:, :seen], mask, scale)
        out[first:end] = attended.view(query.shape[0], end - first, -1).transpose(0, 1)


def _attend_half(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attend by products: q [B, M, D], k and v [B, L, D], mask [1, M, L] -> [B, M, D]."""
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), v)


AttentionInterface.register(IMPLEMENTATION, slot_attention)
