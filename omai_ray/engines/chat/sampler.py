"""Drawing the next tokens of a batch from their logits.

A row's token depends on its own logits, parameters and random number alone, whatever else is in
the batch. It is drawn by inverting the distribution, likeliest tokens first: one random number a
token, and the few likeliest tokens are nearly always enough.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from omai_ray.engines.chat.grammar import Constraint
from omai_ray.engines.chat.protocol import SamplingParams, TokenLogprobs

# A temperature below this is argmax: float32 logits divided by it could overflow.
_GREEDY_BELOW = 1e-5
_CANDIDATES = 256


class Sampler:
    """One sequence's way of choosing: its parameters, random stream, token counts and grammar."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.complete = False  # as its grammar has it
        self._constraint = constraint
        self._random = random.Random(params.seed)  # noqa: S311 - nothing secret is drawn
        self._counts: Counter[int] = Counter()
        self._prompt = frozenset(prompt_ids) if params.repetition_penalty != 1 else frozenset()
        self._counting = bool(
            params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1
        )
        # Whether logits are changed before a token is chosen by them.
        self.adjusts = bool(self._counting or params.logit_bias or constraint is not None)

    def adjust(self, logits: Tensor) -> None:
        """Apply penalties, biases and the grammar to float32 logits [V], in place."""
        params, device = self.params, logits.device
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._prompt | self._counts.keys()), device=device)
            values = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts and (params.frequency_penalty or params.presence_penalty):
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32, device=device)
            penalties = counts * params.frequency_penalty + params.presence_penalty
            logits[torch.tensor(list(self._counts), device=device)] -= penalties
        if params.logit_bias:
            biases = torch.tensor(
                list(params.logit_bias.values()), dtype=torch.float32, device=device
            )
            logits[torch.tensor(list(params.logit_bias), device=device)] += biases
        if self._constraint is not None:
            allowed = torch.from_numpy(self._constraint.allowed()).to(device)
            logits.masked_fill_(~allowed, float("-inf"))

    def number(self) -> float:
        """Return the next random number of this sequence, from 0 to below 1."""
        return self._random.random()

    def note(self, token: int) -> None:
        """Take notice of a token that was drawn."""
        if self._counting:
            self._counts[token] += 1
        if self._constraint is not None:
            self.complete = self._constraint.accept(token)


def draw(logits: Tensor, samplers: Sequence[Sampler]) -> list[tuple[int, TokenLogprobs | None]]:
    """Choose a token for each row of float32 logits [N, V], and report it where asked for.

    Log-probabilities are the model's own: before temperature, penalties and bias.
    """
    adjusting = [row for row, sampler in enumerate(samplers) if sampler.adjusts]
    adjusted = logits.clone() if adjusting else logits
    for row in adjusting:
        samplers[row].adjust(adjusted[row])
    tokens = adjusted.argmax(1).tolist()
    random_rows = [
        row for row, other in enumerate(samplers) if other.params.temperature >= _GREEDY_BELOW
    ]
    if random_rows:
        chosen = _draw_rows(adjusted[random_rows], [samplers[row] for row in random_rows])
        for row, token in zip(random_rows, chosen, strict=True):
            tokens[row] = token
    for token, sampler in zip(tokens, samplers, strict=True):
        sampler.note(token)
    reports = [
        None
        if sampler.params.logprobs is None
        else _report(logits[row], token, sampler.params.logprobs)
        for row, (token, sampler) in enumerate(zip(tokens, samplers, strict=True))
    ]
    return list(zip(tokens, reports, strict=True))


def _draw_rows(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    params = [sampler.params for sampler in samplers]
    drawn = [sampler.number() for sampler in samplers]
    numbers = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
    scaled = logits / _column([p.temperature for p in params], logits)
    width = min(_CANDIDATES, scaled.shape[1])
    tokens, enough = _invert(scaled, params, numbers, width)
    for row in (~enough).nonzero().flatten().tolist():
        one = slice(row, row + 1)
        whole, _ = _invert(scaled[one], params[one], numbers[one], scaled.shape[1])
        tokens[row] = whole[0]
    chosen: list[int] = tokens.tolist()
    return chosen


def _invert(
    scaled: Tensor, params: Sequence[SamplingParams], numbers: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Find the tokens that the numbers fall on, among the `width` likeliest of each row.

    scaled [N, V], numbers [N] -> int64 [N], and bool [N]: whether so many were enough to tell.
    What is kept is a beginning of the row in falling order: first top_k, then the nucleus of what
    that leaves (Holtzman et al. 2020), then min_p.
    """
    vocabulary = scaled.shape[1]
    best = scaled.topk(width, dim=1)
    total = torch.logsumexp(scaled.double(), 1, keepdim=True)
    probs = (best.values.double() - total).exp()
    sums = probs.cumsum(1)
    ranks = torch.arange(width, device=scaled.device)
    top_k = torch.tensor([p.top_k or vocabulary for p in params], device=scaled.device)[:, None]
    # What top_k leaves has this mass in all; where it reaches beyond the candidates, the rest too.
    mass = torch.where(
        top_k <= width, sums.gather(1, (top_k - 1).clamp(max=width - 1)), torch.ones_like(total)
    )
    top_p = _column([p.top_p for p in params], scaled).double()
    kept = (ranks < top_k) & ((sums - probs < top_p * mass) | (top_p >= 1))
    kept &= probs >= _column([p.min_p for p in params], scaled).double() * probs[:, :1]
    kept[:, 0] = True
    count = kept.sum(1)
    ended = (count < width) | (top_k[:, 0] <= width) | (width == vocabulary)
    reach = torch.where(ended, sums.gather(1, count[:, None] - 1)[:, 0], 1.0)
    wanted = numbers * reach
    index = (sums <= wanted[:, None]).sum(1)
    enough = ended | (wanted < sums[:, -1])
    index = torch.minimum(index, count - 1)
    return best.indices.gather(1, index[:, None])[:, 0], enough


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _report(logits: Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(logits, 0)
    best = logprobs.topk(count)
    top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprobs(float(logprobs[token]), top)
