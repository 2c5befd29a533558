"""Attention over sequences of any lengths in one kernel of a GPU: flash attention as torch has it.

It is an operator of its own, so that torch's compiler takes it as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("omai_ray::attend_varlen", mutates_args=(), device_types="cuda")
def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
    causal: bool,
    window: int,
) -> Tensor:
    """Attend within each sequence; float16 or bfloat16.

    query [T, H, D]; key and value [T, K, D], H a multiple of K. boundaries: int32 [N + 1], where
    sequences start, and the last ends. longest: tokens of the longest. window: how far a token sees
    to either side, -1 for all of its sequence. Returns [T, H, D].
    Source: torch.nn.attention.varlen, whose arguments differ between releases; this, below it, is
    the same in all of them.
    """
    query, key, value = (
        states if states.stride(-1) == 1 else states.contiguous() for states in (query, key, value)
    )
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        boundaries,
        boundaries,
        longest,
        longest,
        0.0,
        causal and window < 0,
        False,
        scale=scale,
        window_size_left=window,
        window_size_right=0 if causal else window,
    )[0]
    return attended.contiguous()


@attend_varlen.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
    causal: bool,
    window: int,
) -> Tensor:
    return query.new_empty(query.shape)
