"""Attention over sequences laid end to end, without padding.

`transformers` runs every linear layer over one row of all tokens; only attention must know where a
sequence ends. It is registered with transformers under IMPLEMENTATION, for any architecture whose
attention goes through its attention interface.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

IMPLEMENTATION = "omai_packed"
_UNSUPPORTED = ("softcap", "position_bias", "s_aux")
_HALF = (torch.float16, torch.bfloat16)


class CannotPackError(Exception):
    """This model's attention needs more than packing passes on."""


class Packing:
    """Where sequences lie in a row of tokens. Those of equal length are best adjacent.

    lengths: int64 [N], tokens of each sequence, none of them 0. T is their sum.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], device: torch.device) -> None:
        self.lengths = lengths
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.device = device
        self._windows: dict[tuple[int, int, bool], Tensor] = {}

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token in its sequence, int64 [T]."""
        flat = np.arange(self.ends[-1]) - np.repeat(self.starts, self.lengths)
        return torch.from_numpy(flat).to(self.device)

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """Runs of sequences of one length: (first token, sequences, tokens of each)."""
        changes = np.flatnonzero(np.diff(self.lengths)) + 1
        firsts = np.concatenate(([0], changes))
        counts = np.diff(np.concatenate((firsts, [len(self.lengths)])))
        return [
            (int(self.starts[first]), int(count), int(self.lengths[first]))
            for first, count in zip(firsts, counts, strict=True)
        ]

    @cached_property
    def boundaries(self) -> Tensor:
        """Where sequences start, and where the last ends: int32 [N + 1]."""
        return torch.from_numpy(np.append(self.starts, self.ends[-1]).astype(np.int32)).to(
            self.device
        )

    def window(self, length: int, width: int, causal: bool) -> Tensor:
        """Return bool [length, length], True where a token (row) may look at another.

        width: the distance from which on it may not, as attention functions are given it.
        Source: transformers' modeling_flash_attention_utils, which takes one off for torch.
        """
        key = (length, width, causal)
        if key not in self._windows:
            places = torch.arange(length, device=self.device)
            distance = places[:, None] - places[None, :]
            seen = distance.abs() < width
            if causal:
                seen &= distance >= 0
            self._windows[key] = seen
        return self._windows[key]


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
    rows, heads = query.shape[2], query.shape[1]
    attended = query.new_empty(rows, heads, value.shape[3])
    for first, count, length in packing.groups:
        tokens = slice(first, first + count * length)
        q, k, v = (
            states[0, :, tokens].reshape(states.shape[1], count, length, -1).transpose(0, 1)
            for states in (query, key, value)
        )
        windowed = sliding_window is not None and length >= sliding_window
        mask = packing.window(length, sliding_window or 0, is_causal) if windowed else None
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=is_causal and mask is None,
            scale=scaling,
            enable_gqa=heads != k.shape[1],
        )
        attended[tokens].view(count, length, heads, -1).copy_(out.transpose(1, 2))
    return attended.unsqueeze(0), None


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
