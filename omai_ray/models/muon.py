"""Muon for the matrices of a small model on a CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MATCH_ADAM_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, with matrices of one shape worked on together.

    torch.optim.Muon iterates in bfloat16, one matrix at a time, which takes longer than the whole
    backward pass on a CPU that has no bfloat16 arithmetic; this one stays in float32.
    Source: Jordan et al. 2024 (the iteration), Liu et al. 2025 (the scale, which takes AdamW's
    learning rates).
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.95, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append((matrix, matrix.grad))
            for shape, matrices in by_shape.items():
                smoothed = [self._nesterov(*pair, group) for pair in matrices]
                update = orthogonal(torch.stack(smoothed))
                scale = group["lr"] * MATCH_ADAM_RMS * max(shape) ** 0.5
                for (matrix, _), change in zip(matrices, update, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(change, alpha=scale)

    def _nesterov(self, matrix: Tensor, gradient: Tensor, group: dict[str, float]) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["average"] = torch.zeros_like(matrix)
        average: Tensor = state["average"]
        average.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(average, group["momentum"])


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices [N, R, C] near one, by Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    turned = matrices.mT if tall else matrices
    turned = turned / turned.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = turned @ turned.mT
        turned = torch.baddbmm(
            turned, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), turned, beta=a
        )
    return turned.mT if tall else turned
