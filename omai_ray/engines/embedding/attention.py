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

from omai_ray.engines.embedding.half_attention import attend_half
from omai_ray.engines.embedding.packing import Packing
from omai_ray.engines.flash import flash_attention, has_flash

IMPLEMENTATION = "omai_packed"
_UNSUPPORTED = ("softcap", "position_bias", "s_aux")


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
    if packing.between_layers is not None:
        packing.between_layers()
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    if has_flash(query):
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        seen = flash_attention(
            *(q, k, v),
            *(packing.boundaries, packing.boundaries),
            *(packing.longest, packing.longest),
            scale=scaling or query.shape[3] ** -0.5,
            causal=is_causal,
            window=sliding_window,
        )
        return seen.unsqueeze(0), None
    windowed = sliding_window is not None and packing.longest >= sliding_window
    same_heads = query.shape[1] == key.shape[1]
    if packing.half and same_heads and not (is_causal or windowed):
        attended = attend_half(
            query[0], key[0], value[0], packing, scaling or query.shape[3] ** -0.5
        )
        if attended is not None:
            return attended.unsqueeze(0), None
    attended = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for first, count, length in packing.groups:
        tokens = slice(first, first + count * length)
        q, k, v = (
            states[0, :, tokens].view(states.shape[1], count, length, -1).transpose(0, 1)
            for states in (query, key, value)
        )
        out = attended[tokens].view(count, length, *attended.shape[1:]).transpose(1, 2)
        mask = None
        if sliding_window is not None and length >= sliding_window:
            mask = packing.window(length, sliding_window, is_causal)
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


AttentionInterface.register(IMPLEMENTATION, packed_attention)
