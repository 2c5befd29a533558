"""Rotary positions by the kernels, for models that rotate halves, as nearly all do.

transformers has this in a function of each architecture's module, `apply_rotary_pos_emb`, which
attention looks up there at each call. It is exchanged there, for all models of the architecture in
this process; what the kernels do not do goes to the original.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omai_ray.engines.native.kernels import Kernels, kernels

_NAME = "apply_rotary_pos_emb"
# Products are rounded as the original's are, but for a compiler that joins them with the sum.
_ALIKE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
Rotate = Callable[..., tuple[Tensor, Tensor]]


class NativeRotary:
    """Takes the place of an architecture's `apply_rotary_pos_emb`."""

    def __init__(self, original: Rotate) -> None:
        self.original = original

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Rotate q [1, H, T, D] and k [1, K, T, D] by cos and sin [1, T, D]."""
        found = None if others or options else kernels(q.dtype, q.device.type)
        if found is None or not _fits(q, k, cos, sin):
            return self.original(q, k, cos, sin, *others, **options)
        return _rotated(found, q, k, cos, sin)


def adopt_rotary(model: Any) -> Callable[[], None]:
    """Exchange the function in the module of a model's architecture, if it rotates halves.

    Returns what puts the original back.
    """
    module = sys.modules[type(model).__module__]
    original = getattr(module, _NAME, None)
    found = kernels(model.dtype, model.device.type)
    if found is None or original is None or isinstance(original, NativeRotary):
        return _nothing
    generator = torch.Generator().manual_seed(0)
    q, k, angles = (
        torch.randn(shape, generator=generator).to(model.device, model.dtype)
        for shape in ((1, 3, 5, 8), (1, 2, 5, 8), (1, 5, 8))
    )
    cos, sin = angles.cos(), angles.sin()
    try:
        expected = original(q, k, cos, sin)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return _nothing
    rotated = _rotated(found, q, k, cos, sin)
    if all(
        torch.allclose(a, b, atol=_ALIKE[model.dtype])
        for a, b in zip(rotated, expected, strict=True)
    ):
        setattr(module, _NAME, NativeRotary(original))
        return lambda: setattr(module, _NAME, original)
    return _nothing


def _nothing() -> None:
    """Put nothing back."""


def _fits(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    if q.ndim != 4 or q.shape[0] != 1 or q.shape[3] % 2 or q.shape[3] != k.shape[3]:
        return False
    alike = q.dtype == k.dtype == cos.dtype == sin.dtype
    return alike and cos.shape == sin.shape == (1, *q.shape[2:])


def _rotated(
    found: Kernels, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    cos, sin = cos[0].contiguous(), sin[0].contiguous()
    return found.rotate(q[0], cos, sin)[None], found.rotate(k[0], cos, sin)[None]
