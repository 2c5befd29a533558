"""Products of one row, read from weights in oneDNN's own order, on a CPU.

oneDNN's product is made for many rows; of one it reads the weights more slowly than memory gives
them. Its order is not documented: those that are known here are tried on the layer's own weights.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from omai_ray.engines.native.kernels import CpuKernels, Packed, kernels

_BLOCKS = (64, 48, 32, 16)
_PAIRS = {torch.float32: (1,), torch.bfloat16: (2, 1)}
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


class RowProduct:
    """A linear layer's product of one row; `packed` is what the kernels take."""

    def __init__(self, found: CpuKernels, packed: Packed, kept: tuple[Tensor | None, ...]) -> None:
        self._kernels, self.packed, self._kept = found, packed, kept

    def fits(self, values: Tensor) -> bool:
        """Tell whether these are one row, [..., N]."""
        return (
            values.numel() == values.shape[-1] == self.packed.inputs
            and values.dtype == self._kernels.dtype
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Return [..., M] for one row [..., N]."""
        values = values.contiguous()
        out = values.new_empty(*values.shape[:-1], self.packed.outputs)
        self._kernels.multiply_row(self.packed, values, out)
        return out


@torch.inference_mode()
def row_product(packed: Any, weight: Tensor, bias: Tensor | None) -> RowProduct | None:
    """Return the product of one row for weights [M, N] and their packed form, None without kernels.

    bias: [M]; also None where the order of the packed form is not known.
    """
    found = kernels(weight.dtype)
    if not isinstance(found, CpuKernels):
        return None
    if not hasattr(torch.ops.mkldnn, "data_ptr") or not hasattr(torch.ops.mkldnn, "_nbytes"):
        return None
    outputs, inputs = weight.shape
    own_bias = None if bias is None else bias.contiguous()
    addresses = torch.ops.mkldnn.data_ptr(packed), None if own_bias is None else own_bias.data_ptr()
    places = torch.ops.mkldnn._nbytes(packed) // weight.element_size()
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, inputs, generator=generator).to(weight.dtype)
    expected = torch.ops.mkldnn._linear_pointwise(row, packed, bias, "none", [], "").float()
    for pair, block in product(_PAIRS[weight.dtype], _BLOCKS):
        padded, over = divmod(places, -(-outputs // block) * block)
        if over or padded < inputs or padded % pair:
            continue
        tried = Packed(*addresses, outputs, inputs, padded, block, pair)
        made = RowProduct(found, tried, (packed, own_bias))
        difference = (made(row).float() - expected).abs().max()
        if difference <= _ALIKE[weight.dtype] * expected.abs().max():
            return made
    return None
