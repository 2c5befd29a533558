"""Attention over sequences laid end to end, without padding.

`transformers` runs every linear layer over one row of all tokens; only attention must know where a
sequence ends. It is registered with transformers under IMPLEMENTATION, for any architecture whose
attention goes through its attention interface.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from omai_ray.engines.embedding.packing import Packing

IMPLEMENTATION = "omai_packed"
_UNSUPPORTED = ("softcap", "position_bias", "s_aux")
_HALF = (torch.float16, torch.bfloat16)
_CHUNK_SCORES = 2**20  # 2 MiB of bfloat16: fewer calls gain more than a smaller cache would
_SMALLEST_SUM, _LARGEST_SUM = 2.0**-100, 2.0**120  # scores of up to 83; bfloat16 ends at 2**128


class CannotPackError(Exception):
    """This model's attention needs more than packing passes on."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a packing.

    query [1, H, T, D]; key and value [1, K, T, D], H a multiple of K. Returns [1, T, H, D].
    Raises CannotPackError where the model asks for what is not supported here.
    """
    unsupported = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if packing is None or attention_mask is not None or unsupported:
        raise CannotPackError(f"its attention uses {', '.join(unsupported) or 'a mask of its own'}")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    if query.is_cuda and query.dtype in _HALF:
        return _varlen(query, key, value, scaling, is_causal, sliding_window, packing), None
    attended = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    same_heads = query.shape[1] == key.shape[1]
    for first, count, length in packing.groups:
        tokens = slice(first, first + count * length)
        q, k, v = (
            states[0, :, tokens].view(states.shape[1], count, length, -1).transpose(0, 1)
            for states in (query, key, value)
        )
        out = attended[tokens].view(count, length, *attended.shape[1:]).transpose(1, 2)
        windowed = sliding_window is not None and length >= sliding_window
        plain = same_heads and not (is_causal or windowed)
        if packing.half and plain and _attend_half(q, k, v, out, scaling or q.shape[-1] ** -0.5):
            continue
        mask = packing.window(length, sliding_window or 0, is_causal) if windowed else None
        out.copy_(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=is_causal and mask is None,
                scale=scaling,
                enable_gqa=not same_heads,
            )
        )
    return attended.unsqueeze(0), None


def _attend_half(query: Tensor, key: Tensor, value: Tensor, out: Tensor, scale: float) -> bool:
    """Attend in bfloat16 on a CPU, all tensors [B, H, L, D]: up to twice as fast as torch's own.

    The exponentials are taken as they are, without the row's maximum taken off first, and the row
    is divided by their sum after. That is the softmax where all sums are well within what bfloat16
    can hold; elsewhere False is returned, and `out` is not to be used.
    """
    shape = query.shape
    q, k, v = (
        states.to(torch.bfloat16).reshape(-1, *states.shape[2:]) for states in (query, key, value)
    )
    sums, raw = q.new_empty(q.shape[:2]), torch.empty_like(v)
    unused = q.new_empty(1, 1, 1)
    step = max(1, _CHUNK_SCORES // shape[2] ** 2)
    for at in range(0, len(q), step):
        part = slice(at, at + step)
        weights = torch.baddbmm(unused, q[part], k[part].transpose(1, 2), beta=0, alpha=scale)
        torch.sum(weights.exp_(), -1, out=sums[part])
        torch.bmm(weights, v[part], out=raw[part])
    smallest, largest = sums.aminmax()
    if not (smallest > _SMALLEST_SUM and largest < _LARGEST_SUM):
        return False
    torch.div(raw.view(*shape[:3], -1), sums.view(*shape[:3], 1), out=out)
    return True


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    causal: bool,
    sliding_window: int | None,
    packing: Packing,
) -> Tensor:
    """Use torch's variable-length flash attention; shapes as in packed_attention."""
    from torch.nn.attention.varlen import varlen_attn

    width = -1 if sliding_window is None else sliding_window - 1
    window = (width, 0 if causal else width)
    longest = int(packing.lengths.max())
    q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    attended: Any = varlen_attn(
        *(q, k, v, packing.boundaries, packing.boundaries, longest, longest),
        scale=scaling,
        window_size=window,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    out: Tensor = attended.unsqueeze(0)
    return out


AttentionInterface.register(IMPLEMENTATION, packed_attention)
