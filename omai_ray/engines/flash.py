"""Attention over sequences of any lengths in one kernel of a GPU: torch's flash attention."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def has_flash(states: Tensor) -> bool:
    """Tell whether `flash_attention` takes such states."""
    return states.is_cuda and states.dtype in HALF


def flash_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bounds: Tensor,
    starts: Tensor,
    most_rows: int,
    most_seen: int,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    seen: Tensor | None = None,
) -> Tensor:
    """Attend within each of N sequences; float16 or bfloat16.

    query [T, H, D]; keys and values [P, K, D], H a multiple of K. bounds: int32 [N + 1], where the
    rows of each begin in query, and the last end. starts: int32 [N + 1], the same for keys. seen:
    int32 [N], how many keys each has; by default all up to the next start. most_rows, most_seen:
    of the longest. A query's last row sees the last key where causal, which hides later ones.
    window: how many tokens a row sees to a side, itself included; None for all. Returns [T, H, D].
    Source: torch.nn.attention.varlen, whose arguments differ between releases of torch; this, what
    it calls, has these in all of them.
    """
    query, keys, values = (
        states if states.stride(-1) == 1 else states.contiguous()
        for states in (query, keys, values)
    )
    reach = -1 if window is None else window - 1
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        *(query, keys, values, bounds, starts, most_rows, most_seen, 0.0),
        *(causal and window is None, False),
        scale=scale,
        window_size_left=reach,
        window_size_right=0 if causal else reach,
        seqused_k=seen,
    )[0]
    return attended
