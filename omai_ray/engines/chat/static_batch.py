"""Sequences that are continued together, from one prefill to the last one's end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from omai_ray.engines.chat.protocol import GenerationRequest, StepOutput
from omai_ray.engines.chat.sampler import Sampler


class Sequence:
    """One request while it runs; the engine's thread alone touches it, `aborted` aside."""

    def __init__(self, request: GenerationRequest, vocab_size: int) -> None:
        self.request = request
        self.sampler = Sampler(request.sampling, vocab_size)
        self.generated = 0
        self.aborted = False

    def advance(self, logits: Tensor, stop_ids: frozenset[int]) -> tuple[int, StepOutput]:
        """Draw the next token by float32 logits [V]; the output says whether it was the last."""
        token, logprobs = self.sampler.draw(logits)
        self.generated += 1
        finish = "stop" if token in stop_ids else None
        if finish is None and self.generated == self.request.max_new_tokens:
            finish = "length"
        reported = None if logprobs is None else [logprobs]
        return token, StepOutput([token], finish, reported)  # type: ignore[arg-type]


class StaticBatch:
    """A left-padded batch over a transformers causal model with its own cache.

    Rows leave as they finish, so that the batch only shrinks.
    """

    def __init__(self, model: Any, sequences: list[Sequence], stop_ids: frozenset[int]) -> None:
        self._model = model
        self._stop_ids = stop_ids
        self._device = model.device
        self._cache = DynamicCache(config=model.config)
        self.sequences = sequences
        prompts = [sequence.request.prompt_ids for sequence in sequences]
        longest = max(map(len, prompts))
        self._tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        self._mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)

    @torch.inference_mode()
    def step(self) -> list[tuple[Sequence, StepOutput]]:
        """Run the model once and return each sequence's new token."""
        logits = self._forward()
        outputs, tokens, kept = [], [], []
        for row, sequence in enumerate(self.sequences):
            if sequence.aborted:
                outputs.append((sequence, StepOutput([], "abort")))
                continue
            token, output = sequence.advance(logits[row], self._stop_ids)
            outputs.append((sequence, output))
            if output.finish is None:
                tokens.append(token)
                kept.append(row)
        self._continue_with(kept, tokens)
        return outputs

    def _forward(self) -> Tensor:
        """Return float32 [B, V]: the logits after each sequence's last token."""
        output = self._model(
            input_ids=self._tokens.to(self._device),
            attention_mask=self._mask.to(self._device),
            position_ids=self._positions.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float().cpu()
        return logits

    def _continue_with(self, kept: list[int], tokens: list[int]) -> None:
        rows = torch.tensor(kept, dtype=torch.long)
        if len(kept) < len(self.sequences):
            self.sequences = [self.sequences[row] for row in kept]
            self._mask, self._positions = self._mask[rows], self._positions[rows]
            if kept:
                self._cache.batch_select_indices(rows.to(self._device))
        self._tokens = torch.tensor(tokens, dtype=torch.long).unsqueeze(1)
        self._mask = torch.cat([self._mask, torch.ones(len(kept), 1, dtype=torch.long)], dim=1)
        self._positions = self._positions[:, -1:] + 1
