"""Linear layers in 8 bits: weights and activations, on a CPU with VNNI, through oneDNN.

What a layer reads becomes uint8 with one scale, fixed from calibration texts, so that a text's
vector does not depend on its batch. Two things keep that close to the exact product. Scales that
differ by input channel are folded into the weights (SmoothQuant, Xiao et al. 2022). And where a
feed-forward block's inner values stay in 8 bits, its few loudest channels, which would stretch the
scale for all others, go beside it in float32 (after LLM.int8, Dettmers et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omai_ray.engines.linear import PackedLinear, linear_of
from omai_ray.engines.wiring import Activation, Chain, Wiring

LOUD_CHANNELS = 16
_MIGRATION = 0.75  # how much of a channel's size goes from the activations to the weights
_LEVELS = 255
_QUANTIZED = "omai_quantized"


@dataclass(frozen=True)
class Range:
    """The smallest and largest value of each channel that a layer read, float32 [N]."""

    low: Tensor
    high: Tensor

    @property
    def size(self) -> Tensor:
        """The largest absolute value of each channel."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def scale(self) -> tuple[float, int]:
        """Return the scale and zero point with which uint8 spans all channels, and zero."""
        low, high = min(0.0, float(self.low.min())), max(0.0, float(self.high.max()))
        scale = max(high - low, 1e-12) / _LEVELS
        return scale, round(-low / scale)


def observe(linears: Iterable[nn.Linear], forward: Callable[[], object]) -> dict[nn.Linear, Range]:
    """Run `forward` and return what each layer read."""
    found: dict[nn.Linear, Range] = {}

    def note(module: Any, arguments: tuple[Tensor, ...]) -> None:
        low, high = arguments[0].flatten(0, -2).aminmax(dim=0)
        if (before := found.get(module)) is not None:
            low, high = torch.minimum(low, before.low), torch.maximum(high, before.high)
        found[module] = Range(low, high)

    hooks = [linear.register_forward_pre_hook(note) for linear in linears]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Source:
    """Makes uint8 of the tensor that some layers read, once for all of them."""

    def __init__(self, seen: Range, readers: list[nn.Linear]) -> None:
        weights = torch.cat([linear.weight.detach() for linear in readers]).abs().amax(0)
        floor = 1e-5
        sizes = seen.size.clamp_min(floor) ** _MIGRATION
        self.factors = sizes / weights.clamp_min(floor) ** (1 - _MIGRATION)
        self.scale, self.zero = Range(seen.low / self.factors, seen.high / self.factors).scale()
        self._steps = 1 / (self.scale * self.factors)
        self._shift = torch.full_like(self._steps, self.zero + 0.5)

    def __call__(self, values: Tensor) -> Tensor:
        """Return uint8 of the shape of `values`; kept with them for the next layer."""
        kept = values.__dict__.get(_QUANTIZED)
        if kept is not None and kept[0] is self:
            found: Tensor = kept[1]
            return found
        shifted = torch.addcmul(self._shift, values, self._steps)
        quantized = shifted.clamp_(0, _LEVELS).to(torch.uint8)
        values.__dict__[_QUANTIZED] = (self, quantized)
        return quantized


class _Weights:
    """A layer's weights in int8, a scale for each of its outputs."""

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: float, zero: int) -> None:
        scales = weight.abs().amax(1).clamp_min(1e-12) / 127
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        self._product = (scale, zero, packed, scales, zeros)
        self._bias = None if bias is None else bias.detach()

    def float32(self, values: Tensor) -> Tensor:
        """Return the product as it is."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            *(values, *self._product, self._bias, 1.0, 0, torch.float32, "none", [], "")
        )
        return out

    def uint8(self, values: Tensor, scale: float, zero: int, then: Activation) -> Tensor:
        """Return the product after an activation, in 8 bits again."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            *(values, *self._product, self._bias, scale, zero, torch.uint8, *then.operands)
        )
        return out

    def added_to(self, other: Tensor, values: Tensor) -> Tensor:
        """Return the product plus `other`, float32, in whose place it is put."""
        plain: Any = (1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
        out: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            *(values, *self._product, other, self._bias, *plain)
        )
        return out


class Int8Linear(nn.Module):
    """A linear layer."""

    def __init__(self, linear: nn.Linear, source: _Source) -> None:
        super().__init__()
        self._source = source
        weight = linear.weight.detach() * source.factors
        self._weights = _Weights(weight, linear.bias, source.scale, source.zero)

    def forward(self, values: Tensor) -> Tensor:
        """Return float32 [..., M] for float32 [..., N]."""
        return self._weights.float32(self._source(values))


class Int8Chain(nn.Module):
    """A chain, whole: its inner values are never written but in 8 bits."""

    def __init__(self, chain: Chain, source: _Source, inner: Range) -> None:
        super().__init__()
        self._source, self._activation = source, chain.kind
        up = chain.up.weight.detach() * source.factors
        self._up = _Weights(up, chain.up.bias, source.scale, source.zero)
        loud = inner.size.argsort(descending=True)[:LOUD_CHANNELS].sort().values
        others = torch.ones(len(inner.low), dtype=torch.bool).index_fill(0, loud, False)
        self._scale, self._zero = Range(inner.low[others], inner.high[others]).scale()
        down = chain.down.weight.detach() * others
        self._down = _Weights(down, chain.down.bias, self._scale, self._zero)
        bias = None if chain.up.bias is None else chain.up.bias[loud]
        self._loud_up = PackedLinear(linear_of(chain.up.weight[loud], bias), chain.kind)
        self._loud_down = PackedLinear(linear_of(chain.down.weight[:, loud], None))

    def forward(self, values: Tensor) -> Tensor:
        """Return float32 [..., M] for float32 [..., N]."""
        inner = self._up.uint8(self._source(values), self._scale, self._zero, self._activation)
        return self._down.added_to(self._loud_down(self._loud_up(values)), inner)


def quantized(wiring: Wiring, ranges: dict[nn.Linear, Range]) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of a model's linear layers and activations.

    A chain's layers let their input through but for the last, which computes it all.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    sources: dict[nn.Module, _Source] = {}
    for readers in wiring.readers:
        source = _Source(ranges[readers[0]], readers)
        sources |= dict.fromkeys(readers, source)
    for chain in wiring.chains:
        whole = Int8Chain(chain, sources[chain.up], ranges[chain.down])
        replacements |= {chain.up: nn.Identity(), chain.activation: nn.Identity()}
        replacements[chain.down] = whole
    for linear in wiring.linears:
        if linear not in replacements:
            replacements[linear] = Int8Linear(linear, sources[linear])
    return replacements
