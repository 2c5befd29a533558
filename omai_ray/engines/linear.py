"""Linear layers joined to fewer products; on a CPU also with weights in oneDNN's own order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from omai_ray.engines.native.rows import RowProduct, row_product
from omai_ray.engines.wiring import Activation, Wiring

_JOINT = "omai_joint"
Product = Callable[[nn.Linear], nn.Module]


class PackedLinear(nn.Module):
    """A linear layer, its weights reordered once instead of at each call."""

    def __init__(self, linear: nn.Linear, activation: Activation | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._after = ("none", [], "") if activation is None else activation.operands
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self.row: RowProduct | None = None
        if activation is None:
            self.row = row_product(self.weight, linear.weight, self._bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., M] for [..., N]."""
        if self.row is not None and self.row.fits(values):
            return self.row(values)
        out: Tensor = self._multiply(values, self.weight, self._bias, *self._after)
        return out


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of these, weight [M, N] and bias [M]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """Return one layer that computes several, which all have a bias or all have none.

    On a GPU those are parts of it from now on: its memory has no room for another copy.
    """
    biases: list[Tensor] = [part.bias for part in linears if part.bias is not None]
    weights: list[Tensor] = [part.weight for part in linears]
    one = linear_of(torch.cat(weights), torch.cat(biases) if biases else None)
    if one.weight.is_cuda:
        parts = torch.split(one.weight, [part.out_features for part in linears])
        for linear, part in zip(linears, parts, strict=True):
            linear.weight.data = part
    return one


class Joint:
    """Linear layers that read the same tensor, as one product: fewer and larger calls."""

    def __init__(self, linears: Sequence[nn.Linear], product: Product) -> None:
        self.product = product(joined(linears))

    def __call__(self, values: Tensor) -> Tensor:
        """Return the outputs of all, side by side; kept with the tensor for the next of them."""
        kept = values.__dict__.get(_JOINT)
        if kept is None or kept[0] is not self:
            kept = (self, self.product.forward(values))
            values.__dict__[_JOINT] = kept
        made: Tensor = kept[1]
        return made


class JointLinear(nn.Module):
    """One of the linear layers of a joint product: its columns `start` to `end`."""

    def __init__(self, joint: Joint, start: int, end: int) -> None:
        super().__init__()
        self.joint, self.start, self.width = joint, start, end - start

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., M] for [..., N]."""
        return self.joint(values).narrow(-1, self.start, self.width)


def _joint(linears: Sequence[nn.Linear], product: Product) -> dict[nn.Module, nn.Module]:
    joint = Joint(linears, product)
    ends = list(itertools.accumulate(linear.out_features for linear in linears))
    return {
        linear: JointLinear(joint, end - linear.out_features, end)
        for linear, end in zip(linears, ends, strict=True)
    }


def joint(
    wiring: Wiring, taken: Collection[nn.Module], product: Product
) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of the linear layers, but for `taken`, that can be joined.

    product: what computes a joined layer.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for group in wiring.readers:
        alike = len({linear.bias is None for linear in group}) == 1
        if len(group) > 1 and alike and not any(linear in taken for linear in group):
            replacements |= _joint(group, product)
    return replacements


def packed(wiring: Wiring) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of a model's linear layers and activations.

    A chain's activation is computed by its first layer. Those that read the same tensor, a chain's
    aside, become one product.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for chain in wiring.chains:
        replacements[chain.up] = PackedLinear(chain.up, chain.kind)
        replacements[chain.activation] = nn.Identity()
    replacements |= joint(wiring, replacements.keys(), PackedLinear)
    for linear in wiring.linears:
        if linear not in replacements:
            replacements[linear] = PackedLinear(linear)
    return replacements
