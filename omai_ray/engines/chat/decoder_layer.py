"""A decoder's layers on a CPU, in few calls; for one token of one sequence in one.

What a step costs beside its products is mostly Python's: modules that call modules. So a layer that
is made of what the kernels compute is put together anew, of the same parts. Whether that is what it
computes is found out by comparing, at the last positions of the context: what depends on the
position shows there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omai_ray.engines.chat.slot_attention import (
    KeyValues,
    RandomKeyValues,
    Seen,
    Step,
    slot_attention,
)
from omai_ray.engines.linear import JointLinear, PackedLinear
from omai_ray.engines.native.kernels import (
    WIDEST_HEAD,
    CpuKernels,
    PackedLayer,
    PackedNorm,
    kernels,
)
from omai_ray.engines.native.layers import NativeGatedMlp, NativeRmsNorm
from omai_ray.engines.prepare import FAILURES

# How far what a layer makes, attends with or stores may be from what the model's own layer does, as
# a part of it, both as lengths of vectors.
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 5e-3}
_PLACES = 509  # of the past that is attended to
_log = logging.getLogger(__name__)

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
        self._norms, self.layer_idx = norms, attention.layer_idx
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


class RunAlone(Protocol):
    """Runs a model for some tokens of a sequence that has a memory to itself."""

    def __call__(self, memory: KeyValues, past: int, count: int, *, position: int) -> None:
        """Run it for `count` tokens after the `past` first; position: of the first of them."""


@torch.inference_mode()
def decoder_layers(model: Any, run: RunAlone, context: int) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of a prepared model's layers, where that computes the same.

    run: runs the model. context: the longest sequence.
    """
    found = kernels(model.dtype, model.device.type)
    candidates = [module for module in model.modules() if _may_be_layer(module)]
    if not isinstance(found, CpuKernels) or not candidates:
        return {}
    calls: dict[nn.Module, list[_Call]] = {module: [] for module in candidates}

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls[module].append(_Call(module, arguments, options))

    hooks = [each.register_forward_pre_hook(note, with_kwargs=True) for each in candidates]
    places = min(context, _PLACES)
    memory, count = RandomKeyValues(places), min(3, places - 1)
    try:
        run(memory, places - 1 - count, count, position=context - 1 - count)
        run(memory, places - 1, 1, position=context - 1)
        run(memory, 0, 1, position=0)  # rotary positions may depend on the longest sequence so far
    except FAILURES as error:
        _log.info("no layers are put together anew: %s: %s", type(error).__name__, error)
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    layers: dict[nn.Module, nn.Module] = {}
    for module in candidates:
        try:
            chunk, single, _ = calls[module]
            layer = _put_together(module, chunk.attended(), found)
            if layer and chunk.is_answered_by(layer) and single.is_answered_by(layer):
                layers[module] = layer
        except FAILURES as error:
            _log.info("a layer cannot be put together anew: %s: %s", type(error).__name__, error)
    _log.info("%d of %d layers are put together anew", len(layers), len(candidates))
    return layers


class _Call:
    """A call of a layer, which can be made again with other values."""

    def __init__(
        self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._module, self._options = module, dict(options)
        given = arguments[0] if arguments else self._options.pop("hidden_states")
        self._others = arguments[1:]
        generator = torch.Generator().manual_seed(0)
        self._values = torch.randn(given.shape, generator=generator).to(given)

    def attended(self) -> Seen:
        """Return what the layer itself attends with."""
        return self._make(self._module, 1.0)[1][0]

    def is_answered_by(self, layer: DecoderLayer) -> bool:
        """Tell whether another layer makes the same, attends with the same and stores the same.

        Of values so small that what is added to them shows, and of larger ones.
        """
        return all(self._is_answered_by(layer, size) for size in (0.02, 1.0))

    def _is_answered_by(self, layer: DecoderLayer, size: float) -> bool:
        made, (theirs,), stored = self._make(self._module, size)
        found, seen, kept = self._make(layer, size)
        pairs = [(found, made), *zip(kept, stored, strict=True)]
        for ours in seen:  # nothing where one call does it all
            if (ours.scale, ours.window) != (theirs.scale, theirs.window):
                return False
            pairs += [(ours.query, theirs.query), (ours.key, theirs.key)]
        limit = _ALIKE[self._values.dtype]
        return all((ours - other).norm() <= limit * other.norm() for ours, other in pairs)

    def _make(self, layer: nn.Module, size: float) -> tuple[Tensor, list[Seen], list[Tensor]]:
        """Return what a layer makes of values of a size, attends with, and stores at the end."""
        step, memory = self._options["step"], self._options["memory"]
        seen: dict[int, Seen] = {}
        step.seen = seen
        values = size * self._values
        made = layer(values, *self._others, **self._options)
        step.seen = None
        if isinstance(layer, DecoderLayer):
            index = layer.layer_idx
        else:
            (index,) = seen
        stored = [part[-len(values[0]) - 1 :].clone() for part in memory.known(index)]
        return made.float(), list(seen.values()), stored


def _may_be_layer(module: nn.Module) -> bool:
    kinds = [type(child) for child in module.children()]
    norms, mlps = kinds.count(NativeRmsNorm), kinds.count(NativeGatedMlp)
    return norms in (2, 4) and mlps == 1 and len(kinds) == norms + 2


def _put_together(module: nn.Module, seen: Seen, found: CpuKernels) -> DecoderLayer | None:
    norms = [child for child in module.children() if isinstance(child, NativeRmsNorm)]
    (mlp,) = (child for child in module.children() if isinstance(child, NativeGatedMlp))
    (other,) = (child for child in module.children() if child not in (*norms, mlp))
    attention = _attention(other, seen)
    around = tuple(norms) if len(norms) == 4 else (norms[0], None, norms[1], None)
    if attention is None or not _fit(around, attention, mlp):
        return None
    return DecoderLayer(found, around, attention, mlp)


def _attention(module: Any, seen: Seen) -> _Attention | None:
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
    return _Attention(
        layer_idx=module.layer_idx,
        heads=seen.query.shape[1],
        key_heads=seen.key.shape[1],
        width=seen.query.shape[3],
        scale=float(seen.scale),
        window=seen.window,
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
