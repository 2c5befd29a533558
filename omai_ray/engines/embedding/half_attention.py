"""Attention in bfloat16 on a CPU: up to twice as fast as torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from omai_ray.engines.embedding.packing import Block, Packing

_CHUNK_SCORES = 2**20  # 2 MiB of bfloat16: fewer calls gain more than a smaller cache would
_SMALLEST_SUM, _LARGEST_SUM = 2.0**-100, 2.0**120  # scores of up to 83; bfloat16 ends at 2**128


def attend_half(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float
) -> Tensor | None:
    """Attend within each sequence, all of its tokens to all.

    query, key and value [H, T, D], of any type. Returns [T, H, D] in the type of the query, or
    None where scores are too large or too small for this way of computing it.
    """
    attended = query.new_empty(value.shape[1], value.shape[0], value.shape[2])
    query, key, value = (
        states.transpose(0, 1).to(torch.bfloat16) for states in (query, key, value)
    )
    held = (_attend_block(query, key, value, block, scale, attended) for block in packing.blocks)
    return attended if all(held) else None


def _attend_block(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float, out: Tensor
) -> bool:
    """Attend within the sequences of a block and put the result into `out`; all [T, H, D].

    The exponentials are taken as they are, without the row's maximum taken off first, and the row
    is divided by their sum after. That is the softmax where all sums are well within what bfloat16
    can hold; elsewhere False is returned. A column of ones beside the values makes the sums in the
    same product. Padding is zero in both, so its keys count for nothing.
    """
    heads, width = value.shape[1:]
    shape = (block.count, heads, block.length)
    q, k, v = (
        torch.zeros(*shape, size, dtype=torch.bfloat16) for size in (width, width, width + 1)
    )
    v[..., width] = block.real[:, None]
    inside = list(_places(block))
    for tokens, own in inside:
        for padded, states in ((q, query), (k, key), (v[..., :width], value)):
            copied = padded[own]
            copied.copy_(_by_head(states[tokens], copied))
    products = _weigh(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale).view_as(v)
    sums = products[..., width:]
    smallest, largest = sums.aminmax()
    if not (smallest > _SMALLEST_SUM and largest < _LARGEST_SUM):
        return False
    for tokens, own in inside:
        divided = products[own]
        torch.div(divided[..., :width], sums[own], out=_by_head(out[tokens], divided))
    return True


def _places(block: Block) -> Iterator[tuple[slice, tuple[slice, slice, slice]]]:
    """Yield, for each length, where its tokens are in the row, and where in [count, H, length]."""
    row = 0
    for first, count, length in block.groups:
        yield (
            slice(first, first + count * length),
            (slice(row, row + count), slice(None), slice(length)),
        )
        row += count


def _by_head(states: Tensor, like: Tensor) -> Tensor:
    """View [count * L, H, D] as [count, H, L, D], sizes as those of `like`."""
    count, _, length = like.shape[:3]
    return states.view(count, length, *states.shape[1:]).transpose(1, 2)


def _weigh(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return the values weighted by the exponentials of the scores; all [B, L, D]."""
    products = torch.empty_like(value)
    unused = query.new_empty(1, 1, 1)
    chunk = 1 << (max(1, _CHUNK_SCORES // query.shape[1] ** 2).bit_length() - 1)
    for at in range(0, len(query), chunk):
        part = slice(at, at + chunk)
        weights = torch.baddbmm(unused, query[part], key[part].transpose(1, 2), beta=0, alpha=scale)
        torch.bmm(weights.exp_(), value[part], out=products[part])
    return products
