from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from omai_ray.models.muon import Muon, orthogonal


def test_singular_values_come_near_one() -> None:
    """Of wide, tall and square matrices, several at once."""
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8), (1, 16, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < values.median() < 1.3
        assert values.max() < 1.5


def test_steps_equal_those_of_torch() -> None:
    """Up to the bfloat16 in which torch iterates; a matrix without a gradient stays."""
    torch.manual_seed(0)
    start, still = torch.randn(24, 12), torch.nn.Parameter(torch.ones(4, 4))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    own = Muon([ours, still], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(5):
        ours.grad = torch.randn(24, 12)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()  # type: ignore[no-untyped-call]
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.99
    assert 0.97 < moved.norm() / expected.norm() < 1.03
    assert torch.equal(still, torch.ones(4, 4))
