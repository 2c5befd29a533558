"""A decoder's layers on a CPU, in few calls; for one token of one sequence in one.

What a step costs beside its products is mostly Python's: modules that call modules. So a layer that
is made of what the kernels compute is put together anew, of the same parts. Whether that is what it
computes must be found out by comparing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omai_ray.engines.chat.slot_attention import KeyValues, Step, slot_attention
from omai_ray.engines.linear import JointLinear, PackedLinear
from omai_ray.engines.native.kernels import (
    WIDEST_HEAD,
    CpuKernels,
    PackedLayer,
    PackedNorm,
    kernels,
)
from omai_ray.engines.native.layers import NativeGatedMlp, NativeRmsNorm

_Norms = tuple[NativeRmsNorm | None, ...]


@dataclass(frozen=True)
class _Attention:
    """The parts of a layer's attention: joint makes query, key and value, side by side."""

    layer_idx: int
    heads: int
    key_heads: int
    width: int
    scale: float
    window: int | None
    query_norm: NativeRmsNorm | None
    key_norm: NativeRmsNorm | None
    joint: PackedLinear
    projection: PackedLinear


class DecoderLayer(nn.Module):
    """Attention and a gated block, each on a norm of the sum so far, to which it is added.

    norms: those before and after attention, before and after the block.
    """

    def __init__(
        self,
        found: CpuKernels,
        norms: _Norms,
        attention: _Attention,
        mlp: NativeGatedMlp,
    ) -> None:
        super().__init__()
        self._kernels, self._attention, self._mlp = found, attention, mlp
        self._norms = norms
        self._packed = _pack(norms, attention, mlp)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        step: Step,
        memory: KeyValues,
        **others: Any,
    ) -> Tensor:
        """Return [1, T, N] for [1, T, N]; position_embeddings: cos and sin [1, T, D]."""
        own = self._attention
        cos, sin = (part[0].contiguous() for part in position_embeddings)
        single, past = step.single, memory.known(own.layer_idx)
        if self._packed is not None and single is not None and past is not None:
            if step.between_layers is not None:
                step.between_layers()
            return self._kernels.decode(
                *(self._packed, hidden_states.contiguous(), cos, sin, *past),
                *(single.start, single.lengths[0]),
            )
        attention_first, attention_last, block_first, block_last = self._norms
        joint = own.joint.forward(_normed(attention_first, hidden_states))[0]
        parts = joint.view(len(joint), -1, own.width)
        query, key, value = torch.split(parts, [own.heads, own.key_heads, own.key_heads], dim=1)
        query, key = _normed(own.query_norm, query), _normed(own.key_norm, key)
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        query, key = (self._kernels.rotate(part, cos, sin) for part in (query, key))
        attended, _ = slot_attention(
            own,
            *(query[None], key[None], value[None], None),
            scaling=own.scale,
            sliding_window=own.window,
            step=step,
            memory=memory,
        )
        made = own.projection.forward(attended.flatten(2))
        hidden_states = hidden_states + _normed(attention_last, made)
        made = self._mlp.forward(_normed(block_first, hidden_states))
        return hidden_states + _normed(block_last, made)


def _normed(norm: NativeRmsNorm | None, values: Tensor) -> Tensor:
    return values if norm is None else norm.forward(values)


def decoder_layers(model: Any) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of a prepared model's layers; empty where none is fit."""
    found = kernels(model.dtype, model.device.type)
    if not isinstance(found, CpuKernels):
        return {}
    made = {module: _decoder_layer(module, found) for module in model.modules()}
    return {module: layer for module, layer in made.items() if layer is not None}


def _decoder_layer(module: nn.Module, found: CpuKernels) -> DecoderLayer | None:
    norms = [child for child in module.children() if isinstance(child, NativeRmsNorm)]
    mlps = [child for child in module.children() if isinstance(child, NativeGatedMlp)]
    others = [child for child in module.children() if child not in (*norms, *mlps)]
    if len(norms) not in (2, 4) or (len(mlps), len(others)) != (1, 1):
        return None
    attention, mlp = _attention(others[0]), mlps[0]
    around = tuple(norms) if len(norms) == 4 else (norms[0], None, norms[1], None)
    if attention is None or not _fit(around, attention, mlp):
        return None
    return DecoderLayer(found, around, attention, mlp)


def _attention(module: Any) -> _Attention | None:
    joined = [child for child in module.children() if isinstance(child, JointLinear)]
    norms = [child for child in module.children() if isinstance(child, NativeRmsNorm)]
    others = [child for child in module.children() if child not in (*joined, *norms)]
    if len(joined) != 3 or len(norms) not in (0, 2) or len(others) != 1:
        return None
    query, key, value = joined
    product, projection = query.joint.product, others[0]
    side_by_side = [part.start for part in joined] == [0, query.width, query.width + key.width]
    if len({part.joint for part in joined}) != 1 or not side_by_side or key.width != value.width:
        return None
    if not isinstance(product, PackedLinear) or not isinstance(projection, PackedLinear):
        return None
    try:
        width, scale, layer = int(module.head_dim), float(module.scaling), int(module.layer_idx)
        window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
    except (AttributeError, TypeError):
        return None
    return _Attention(
        layer_idx=layer,
        heads=query.width // width,
        key_heads=key.width // width,
        width=width,
        scale=scale,
        window=window,
        query_norm=norms[0] if norms else None,
        key_norm=norms[1] if norms else None,
        joint=product,
        projection=projection,
    )


def _linears(attention: _Attention, mlp: NativeGatedMlp) -> list[PackedLinear]:
    linears = (attention.joint, attention.projection, mlp.both, mlp.down)
    return [linear for linear in linears if isinstance(linear, PackedLinear)]


def _fit(norms: _Norms, attention: _Attention, mlp: NativeGatedMlp) -> bool:
    """Tell whether the sizes belong together: the kernels do not look at them."""
    found = [tuple(linear.weight.shape) for linear in _linears(attention, mlp)]
    hidden, inner = found[0][1], found[-1][1]
    query, key = attention.heads * attention.width, attention.key_heads * attention.width
    of_heads = attention.query_norm, attention.key_norm
    sizes = [(query + 2 * key, hidden), (hidden, query), (2 * inner, hidden), (hidden, inner)]
    return (
        found == sizes
        and all(norm is None or len(norm.weight) == hidden for norm in norms)
        and all(norm is None or len(norm.weight) == attention.width for norm in of_heads)
        and attention.heads % attention.key_heads == attention.width % 2 == 0
    )


def _pack(norms: _Norms, attention: _Attention, mlp: NativeGatedMlp) -> PackedLayer | None:
    """Return what the kernel takes; None where it does not know the order of weights."""
    rows = [linear.row for linear in _linears(attention, mlp)]
    packed = [row.packed for row in rows if row is not None]
    if len(packed) != len(rows) or attention.width > WIDEST_HEAD:
        return None
    return PackedLayer(
        *(_pack_norm(norm) for norm in (*norms, attention.query_norm, attention.key_norm)),
        *packed,
        *(attention.heads, attention.key_heads, attention.width, attention.window or 0),
        *(mlp.gate_first, mlp.gate == "gelu", attention.scale),
    )


def _pack_norm(norm: NativeRmsNorm | None) -> PackedNorm:
    if norm is None:
        return PackedNorm()
    return PackedNorm(norm.weight.data_ptr(), norm.epsilon, norm.offset, norm.early)
