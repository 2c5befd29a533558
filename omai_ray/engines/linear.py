"""Linear layers for a CPU: weights kept in oneDNN's own order, activations joined to products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omai_ray.engines.wiring import Activation, Wiring


class PackedLinear(nn.Module):
    """A linear layer, its weights reordered once instead of at each call."""

    def __init__(self, linear: nn.Linear, activation: Activation | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._after = ("none", [], "") if activation is None else activation.operands

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., M] for [..., N]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            values, self.weight, self._bias, *self._after
        )
        return out


def packed(wiring: Wiring) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of a model's linear layers and activations.

    A chain's activation is computed by its first layer.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for chain in wiring.chains:
        replacements[chain.up] = PackedLinear(chain.up, chain.kind)
        replacements[chain.activation] = nn.Identity()
    for linear in wiring.linears:
        if linear not in replacements:
            replacements[linear] = PackedLinear(linear)
    return replacements
