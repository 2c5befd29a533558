"""What a decoder does between its products, each in one pass over memory, on a GPU.

The same functions as those of kernels.cpp, in Triton, which comes with torch where it has CUDA.
"""

# Triton reads these functions' source: annotations other than its own would be taken for values.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from omai_ray.engines.native.kernels import Kernels

_PROGRAMS = 264  # two for each multiprocessor of a large GPU
_MOST_SPLITS = 32
_LEAST_ROWS = 16  # of a product on the matrix units
_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    keys,
    values,
    starts,
    lengths,
    out,
    sums,
    peaks,
    totals,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    scale,
    window,
    key_heads: tl.constexpr,
    shared: tl.constexpr,
    width: tl.constexpr,
    splits: tl.constexpr,
    block_rows: tl.constexpr,
    block_width: tl.constexpr,
    block: tl.constexpr,
):
    """Attend with the query heads of one key head, over one split of a sequence's tokens."""
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + sequence).to(tl.int64)
    past = tl.load(lengths + sequence) - 1
    first = 0
    if window > 0:
        first = tl.maximum(0, past + 1 - window)
    each = tl.cdiv(tl.cdiv(past - first, splits), block) * block
    low = first + split * each
    high = tl.minimum(low + each, past)

    rows = tl.arange(0, block_rows)
    columns = tl.arange(0, block_width)
    inside = columns < width
    heads = head * shared + rows
    whole = (rows < shared)[:, None] & inside[None, :]
    q = tl.load(
        query + sequence * query_token + heads[:, None] * query_head + columns[None, :],
        mask=whole,
        other=0.0,
    )
    peak = tl.full([block_rows], float("-inf"), tl.float32)
    total = tl.zeros([block_rows], tl.float32)
    summed = tl.zeros([block_rows, block_width], tl.float32)
    token = key_heads * width
    own_keys = keys + start * token + head * width
    own_values = values + start * token + head * width
    if split == 0:  # the new token, which nobody else has to read in this step
        k = tl.load(key + sequence * key_token + head * key_head + columns, mask=inside, other=0.0)
        v = tl.load(
            value + sequence * value_token + head * value_head + columns, mask=inside, other=0.0
        )
        last = past.to(tl.int64) * token
        tl.store(own_keys + last + columns, k, mask=inside)
        tl.store(own_values + last + columns, v, mask=inside)
        peak = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
        total += 1.0
        summed += v.to(tl.float32)[None, :]
    for at in range(low, high, block):
        places = at + tl.arange(0, block)
        there = places < high
        offsets = places.to(tl.int64)[:, None] * token + columns[None, :]
        loaded = there[:, None] & inside[None, :]
        k = tl.load(own_keys + offsets, mask=loaded, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fading = tl.exp(peak - higher)
        total = total * fading + tl.sum(weights, 1)
        v = tl.load(own_values + offsets, mask=loaded, other=0.0)
        summed = summed * fading[:, None]
        summed += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = higher
    row = (sequence * key_heads + head) * shared + rows
    if splits == 1:
        place = out + row[:, None] * width + columns[None, :]
        tl.store(place, (summed / total[:, None]).to(out.dtype.element_ty), mask=whole)
    else:
        row = row * splits + split
        tl.store(peaks + row, peak, mask=rows < shared)
        tl.store(totals + row, total, mask=rows < shared)
        tl.store(sums + row[:, None] * width + columns[None, :], summed, mask=whole)


@triton.jit  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    sums,
    peaks,
    totals,
    out,
    width: tl.constexpr,
    splits: tl.constexpr,
    block_width: tl.constexpr,
):
    """Join the splits of one query head."""
    row = tl.program_id(0)
    columns = tl.arange(0, block_width)
    parts = row * splits + tl.arange(0, splits)
    peak = tl.load(peaks + parts)
    weights = tl.exp(peak - tl.max(peak, 0))
    total = tl.sum(tl.load(totals + parts) * weights, 0)
    each = tl.load(
        sums + parts[:, None] * width + columns[None, :], mask=(columns < width)[None, :], other=0.0
    )
    joined = tl.sum(each * weights[:, None], 0) / total
    tl.store(out + row * width + columns, joined.to(out.dtype.element_ty), mask=columns < width)


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm(  # type: ignore[no-untyped-def]
    values,
    weight,
    out,
    epsilon,
    offset,
    width: tl.constexpr,
    early: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    given = tl.load(values + row * width + columns, mask=inside, other=0.0)
    x = given.to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 0) / width + epsilon)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    x = x.to(given.dtype).to(tl.float32) * w if early else x * (w + offset)
    tl.store(out + row * width + columns, x.to(given.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_product(  # type: ignore[no-untyped-def]
    both,
    out,
    width: tl.constexpr,
    gate_first: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    first = tl.load(both + row * 2 * width + columns, mask=inside, other=0.0)
    second = tl.load(both + row * 2 * width + width + columns, mask=inside, other=0.0)
    gate, up = (first, second) if gate_first else (second, first)
    x = gate.to(tl.float32)
    x = (x * tl.sigmoid(x)).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * width + columns, x.to(gate.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    states,
    cos,
    sin,
    out,
    token_stride,
    head_stride,
    heads: tl.constexpr,
    width: tl.constexpr,
    block_heads: tl.constexpr,
    block_half: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    half = width // 2
    rows = tl.arange(0, block_heads)[:, None]
    columns = tl.arange(0, block_half)[None, :]
    inside = (rows < heads) & (columns < half)
    own = states + token * token_stride + rows * head_stride + columns
    a = tl.load(own, mask=inside, other=0.0)
    b = tl.load(own + half, mask=inside, other=0.0)
    angles = token * width + columns
    known = columns < half
    cos_a = tl.load(cos + angles, mask=known, other=0.0).to(tl.float32)
    sin_a = tl.load(sin + angles, mask=known, other=0.0).to(tl.float32)
    cos_b = tl.load(cos + angles + half, mask=known, other=0.0).to(tl.float32)
    sin_b = tl.load(sin + angles + half, mask=known, other=0.0).to(tl.float32)
    kind = a.dtype
    x, y = a.to(tl.float32), b.to(tl.float32)
    first = (x * cos_a).to(kind).to(tl.float32) - (y * sin_a).to(kind).to(tl.float32)
    second = (y * cos_b).to(kind).to(tl.float32) + (x * sin_b).to(kind).to(tl.float32)
    place = out + (token * heads + rows) * width + columns
    tl.store(place, first.to(kind), mask=inside)
    tl.store(place + half, second.to(kind), mask=inside)


class GpuKernels(Kernels):
    """Those of a GPU."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        starts: Tensor,
        lengths: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """See `Kernels`; nothing is read on the host, so that this can be part of a graph."""
        self._check(query, key, value, keys, values, out)
        query, key, value = (
            part if part.stride(2) == 1 else part.contiguous() for part in (query, key, value)
        )
        sequences, heads, width = query.shape
        key_heads = key.shape[1]
        splits = _splits(sequences * key_heads)
        sums = peaks = totals = out
        if splits > 1:
            sums = query.new_empty(sequences, heads, splits, width, dtype=torch.float32)
            peaks, totals = query.new_empty(2, sequences, heads, splits, dtype=torch.float32)
        block_width = max(_LEAST_ROWS, triton.next_power_of_2(width))
        block, warps, stages = _tiles(block_width)
        _attend[(sequences, key_heads, splits)](
            *(query, key, value, keys, values, starts, lengths, out, sums, peaks, totals),
            *(*query.stride()[:2], *key.stride()[:2], *value.stride()[:2]),
            *(scale, window or 0),
            key_heads=key_heads,
            shared=heads // key_heads,
            width=width,
            splits=splits,
            block_rows=max(_LEAST_ROWS, triton.next_power_of_2(heads // key_heads)),
            block_width=block_width,
            block=block,
            num_warps=warps,
            num_stages=stages,
        )
        if splits > 1:
            _join[(sequences * heads,)](
                *(sums, peaks, totals, out),
                width=width,
                splits=splits,
                block_width=block_width,
            )

    def rms_norm(
        self, values: Tensor, weight: Tensor, epsilon: float, offset: float, early: bool
    ) -> Tensor:
        """See `Kernels`."""
        self._check(values, weight)
        width = len(weight)
        if values.shape[-1] != width:
            raise TypeError(f"{values.shape[-1]} values for a weight of {width}")
        values = values.contiguous()
        out = torch.empty_like(values)
        block = triton.next_power_of_2(width)
        _rms_norm[(values.numel() // width,)](
            *(values, weight, out, epsilon, offset),
            width=width,
            early=early,
            block=block,
            num_warps=min(max(block // 512, 1), 16),
        )
        return out

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `Kernels`."""
        self._check(states, cos, sin)
        if states.stride(2) != 1:
            states = states.contiguous()
        heads, tokens, width = states.shape
        out = states.new_empty(tokens, heads, width)
        _rotate[(tokens,)](
            *(states, cos, sin, out, states.stride(1), states.stride(0)),
            heads=heads,
            width=width,
            block_heads=triton.next_power_of_2(heads),
            block_half=triton.next_power_of_2(width // 2),
        )
        return out.transpose(0, 1)

    def gated_product(self, both: Tensor, *, gate_first: bool, gate: str) -> Tensor:
        """See `Kernels`; SiLU is the only one of the gates."""
        self._check(both)
        both = both.contiguous()
        width = both.shape[-1] // 2
        out = both.new_empty(*both.shape[:-1], width)
        _silu_product[(both.numel() // (2 * width), triton.cdiv(width, _BLOCK))](
            *(both, out), width=width, gate_first=gate_first, block=_BLOCK
        )
        return out


def _tiles(block_width: int) -> tuple[int, int, int]:
    """Return how many tokens are read at a time, by how many warps, in how many stages."""
    return (64 if block_width <= 128 else 32), 4, 3


def _splits(programs: int) -> int:
    """Return into how many parts sequences are split, a power of two, so that a GPU is filled."""
    wanted = max(1, _PROGRAMS // programs)
    return min(_MOST_SPLITS, 1 << (wanted - 1).bit_length())
