"""Drawing tokens: the distribution, its cuts, penalties, and independence of the batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from omai_ray.engines.chat.protocol import SamplingParams
from omai_ray.engines.chat.sampler import Sampler, draw


def drawn(logits: torch.Tensor, draws: int, **params: Any) -> Counter[int]:
    """Return how often each token is drawn from these logits [V]."""
    sampler = Sampler(SamplingParams(seed=0, **params), [])
    found: Counter[int] = Counter()
    for _ in range(draws):
        ((token, _),) = draw(logits[None], [sampler])
        found[token] += 1
    return found


def assert_like(found: Counter[int], probs: torch.Tensor) -> None:
    """Compare frequencies with probabilities [V], within five standard deviations."""
    draws = sum(found.values())
    for token, prob in enumerate(probs.tolist()):
        deviation = (prob * (1 - prob) / draws) ** 0.5
        assert abs(found[token] / draws - prob) <= 5 * deviation + 1e-9, token


LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 1.9, -3.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    """With nothing cut off."""
    found = drawn(LOGITS, 4000, temperature=temperature)
    assert_like(found, (LOGITS / temperature).softmax(0))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, [0, 4]),
        ({"top_p": 0.5}, [0, 4]),
        ({"top_p": 0.0}, [0]),
        ({"min_p": 0.3}, [0, 2, 4]),
        ({"top_k": 3, "top_p": 0.9}, [0, 2, 4]),
        ({"top_k": 3, "top_p": 0.7}, [0, 4]),
        ({"top_k": 100}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_what_is_cut_off_is_never_drawn_and_the_rest_keeps_its_shares(
    params: dict[str, Any], kept: list[int]
) -> None:
    """top_k first, then the nucleus of what it leaves, then min_p."""
    probs = torch.zeros(6)
    probs[kept] = LOGITS[kept].softmax(0)
    assert_like(drawn(LOGITS, 3000, **params), probs)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.99}, {"top_k": 700}, {"min_p": 0.5}])
def test_a_flat_distribution_reaches_beyond_the_candidates(params: dict[str, Any]) -> None:
    """Of a thousand almost equal tokens, more than the likeliest 256 are drawn."""
    logits = torch.linspace(0, 0.1, 1000)
    found = drawn(logits, 3000, **params)
    cut = {"top_p": 0.99, "top_k": 700}
    assert len(found) > 500
    if "top_k" in params:
        assert min(found) >= 1000 - cut["top_k"]
    if "top_p" in params:
        assert min(found) >= 5


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    """The same logits and seed give the same tokens, whatever the batch mates ask for."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 1000, generator=generator) * 3
    params = [
        SamplingParams(temperature=0.2 + row, top_p=1 - row / 10, top_k=row * 50, seed=row)
        for row in range(8)
    ]
    together = [Sampler(p, []) for p in params]
    first, second = draw(logits, together), draw(logits, together)
    for row, p in enumerate(params):
        alone = Sampler(p, [])
        one = logits[row : row + 1]
        assert [draw(one, [alone])[0][0], draw(one, [alone])[0][0]] == [
            first[row][0],
            second[row][0],
        ]


def test_temperature_near_zero_is_argmax() -> None:
    """Not a division by it."""
    for temperature in (0.0, 1e-9):
        assert set(drawn(LOGITS, 5, temperature=temperature)) == {0}


def test_penalties_are_as_published() -> None:
    """Repetition counts the prompt too; the others the completion only."""
    logits = torch.tensor([3.0, -1.0, 0.5])
    sampler = Sampler(
        SamplingParams(
            repetition_penalty=2.0,
            presence_penalty=0.25,
            frequency_penalty=0.5,
            logit_bias={2: 4.0},
            temperature=0,
        ),
        [1],
    )
    sampler.note(0)
    sampler.note(0)
    adjusted = logits.clone()
    sampler.adjust(adjusted)
    assert adjusted.tolist() == [3.0 / 2 - 2 * 0.5 - 0.25, -1.0 * 2, 4.5]
