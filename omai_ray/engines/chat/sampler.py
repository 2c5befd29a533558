"""Drawing the next token of one sequence from its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from omai_ray.engines.chat.protocol import SamplingParams, TokenLogprobs

# A temperature below this is argmax: float32 logits divided by it could overflow.
_GREEDY_BELOW = 1e-5


class Sampler:
    """One sequence's way of choosing: its parameters, random stream and token counts.

    Its own generator makes the draws independent of whatever else is in the batch.
    """

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed % 2**63)
        self._counts = torch.zeros(vocab_size)
        self._penalised = bool(params.presence_penalty or params.frequency_penalty)
        self._bias = torch.zeros(vocab_size) if params.logit_bias else None
        for token_id, value in params.logit_bias.items():
            self._bias[token_id] = value  # type: ignore[index]

    def draw(self, logits: Tensor) -> tuple[int, TokenLogprobs | None]:
        """Choose a token by float32 logits [V]; with it, its log-probabilities where asked for.

        Log-probabilities are the model's own: before temperature, penalties and bias.
        """
        token = self._choose(self._adjust(logits))
        if self._penalised:
            self._counts[token] += 1
        return token, self._report(logits, token)

    def _adjust(self, logits: Tensor) -> Tensor:
        if self._bias is not None:
            logits = logits + self._bias
        if self._penalised:
            logits = logits - self._params.frequency_penalty * self._counts
            logits = logits - self._params.presence_penalty * (self._counts > 0)
        return logits

    def _choose(self, logits: Tensor) -> int:
        if self._params.temperature < _GREEDY_BELOW:
            return int(logits.argmax())
        logits = logits / self._params.temperature
        if self._params.top_p < 1:
            logits = _nucleus(logits, self._params.top_p)
        noise = torch.empty_like(logits).exponential_(generator=self._generator)
        return int((torch.softmax(logits, 0) / noise).argmax())

    def _report(self, logits: Tensor, token: int) -> TokenLogprobs | None:
        if self._params.logprobs is None:
            return None
        logprobs = torch.log_softmax(logits, 0)
        best = logprobs.topk(self._params.logprobs)
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return TokenLogprobs(float(logprobs[token]), top)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that together reach top_p, at least one.

    logits float [V] -> float [V], -inf where left out. Source: Holtzman et al. 2020.
    """
    ordered, order = logits.sort(descending=True)
    probs = torch.softmax(ordered, 0)
    left_out = probs.cumsum(0) - probs >= top_p
    left_out[0] = False
    return logits.index_fill(0, order[left_out], float("-inf"))
