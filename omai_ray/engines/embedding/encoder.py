"""The transformer of an embedding checkpoint: ids in, one vector a token out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from omai_ray.engines.device import has_bfloat16, to_device
from omai_ray.engines.embedding.attention import IMPLEMENTATION, CannotPackError
from omai_ray.engines.embedding.int8 import observe, quantized
from omai_ray.engines.embedding.packing import Ids, Packing, lengths_of, padded
from omai_ray.engines.prepare import differs, prepare
from omai_ray.engines.wiring import rewire, watch

# How far two ways of computing the same vectors may be apart, as a part of the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_log = logging.getLogger(__name__)
Segments = Callable[[Ids], Ids]  # a sequence's ids to the segment (token type) of each


def load_encoder(directory: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a checkpoint's transformer; of an encoder-decoder, the encoder."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    loader = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
    model: Any = loader.from_pretrained(
        directory,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return model.to(device).eval().requires_grad_(False)


def multiplied_weights(model: nn.Module) -> int:
    """Return how many weights a model multiplies each token by: all but those of its tables."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = sum(table.weight.numel() for table in tables)
    return max(1, sum(weight.numel() for weight in model.parameters()) - looked_up)


def _rounded(tokens: int, device: torch.device) -> int:
    """Return how many tokens a forward is given.

    On a CPU oneDNN makes a kernel for each number; a GPU's wide loads like multiples of 8.
    """
    step = 32 if device.type == "cpu" and tokens > 256 else 8
    return -(-tokens // step) * step


class Encoder:
    """Any encoder or decoder that transformers can load, run without padding where it can be.

    Whether it can is found out at load: packed and padded must give the same vectors. A model
    that cannot be packed runs on padded batches, and a warning says why.

    context: the longest input in tokens. segments: where not all tokens are of segment 0.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, context: int, segments: Segments | None = None
    ) -> None:
        self._model = model
        self._device = model.device
        self._dtype = dtype
        self._segments = segments
        text_config = self._model.config.get_text_config()
        self.vocab_size = int(self._model.get_input_embeddings().num_embeddings)
        self.width = int(text_config.hidden_size)
        self.pad_id = int(getattr(text_config, "pad_token_id", None) or 0)
        accepted = inspect.signature(self._model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}
        self._typed = "token_type_ids" in accepted
        self._placed = "position_ids" in accepted
        self._position_offset = 0
        self._attends_half = has_bfloat16() and dtype == torch.bfloat16
        self.probe = self._probe_inputs(min(context, self._probe_length(text_config)))
        self.packs = self._can_pack()

    def __call__(
        self, inputs: Sequence[Ids], between_layers: Callable[[], None] | None = None
    ) -> Tensor:
        """Return the last hidden state of every token, [T, D], sequences end to end.

        between_layers: called in every layer of a model that is packed.
        """
        return self._packed(inputs, between_layers) if self.packs else self._padded(inputs)

    def prepare(self) -> None:
        """Make layers faster, their values the same; once, before first use.

        Where they would not be the same, the layers stay as they are, and a warning says so.
        """
        expected, tolerance = self._run_probe(), TOLERANCE[self._dtype]
        prepare(self._model, self._run_probe, expected, tolerance)

    def quantize(self, calibration: Sequence[Ids]) -> None:
        """Put 8-bit linear layers in the places of float32 ones, once, before first use.

        calibration: inputs whose activations set the scales.
        """
        wiring = watch(self._model, self._run_probe)
        ranges = observe(wiring.linears, lambda: self._run_each(calibration))
        rewire(self._model, quantized(wiring, ranges))
        self._attends_half = has_bfloat16()

    @torch.inference_mode()
    def _packed(self, inputs: Sequence[Ids], between_layers: Callable[[], None] | None) -> Tensor:
        tokens = sum(map(len, inputs))
        pad = np.array([self.pad_id])
        inputs = [*inputs, *[pad] * (_rounded(tokens, self._device) - tokens)]
        ids = to_device([np.concatenate(inputs)], self._device)[0][None]
        packing = Packing(
            lengths_of(inputs),
            self._device,
            half=self._attends_half,
            between_layers=between_layers,
        )
        options: dict[str, Any] = dict(self._options)
        if self._segments is not None:
            types = np.concatenate([self._segments(sequence) for sequence in inputs])
            options["token_type_ids"] = to_device([types], self._device)[0][None]
        elif self._typed:
            options["token_type_ids"] = torch.zeros_like(ids)
        if self._placed:
            options["position_ids"] = packing.positions[None] + self._position_offset
        out = self._model(input_ids=ids, attention_mask=None, packing=packing, **options)
        hidden: Tensor = out.last_hidden_state[0, :tokens]
        return hidden

    @torch.inference_mode()
    def _padded(self, inputs: Sequence[Ids]) -> Tensor:
        ids, real = padded(inputs, self.pad_id)
        mask = torch.from_numpy(real).to(self._device)
        options: dict[str, Any] = dict(self._options)
        if self._segments is not None:
            types, _ = padded([self._segments(sequence) for sequence in inputs], 0)
            options["token_type_ids"] = torch.from_numpy(types).to(self._device)
        hidden: Tensor = self._model(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=mask.long(),
            **options,
        ).last_hidden_state
        return hidden[mask]

    def _probe_length(self, config: Any) -> int:
        """Return a length at which a sliding window, if the model has one, matters."""
        return 2 * int(getattr(config, "sliding_window", None) or 0) + 9

    def _probe_inputs(self, longest: int) -> list[Ids]:
        """Return a few random inputs, the first of them the longest."""
        rng = np.random.default_rng(0)
        inputs = [rng.integers(0, self.vocab_size, min(n, longest)) for n in (longest, 7, 3, 3)]
        for ids in inputs:
            ids[ids == self.pad_id] = (self.pad_id + 1) % self.vocab_size
        return inputs

    def _run_probe(self) -> Tensor:
        return self(self.probe).float()

    def _run_each(self, inputs: Sequence[Ids]) -> None:
        for ids in inputs:
            self([ids])

    def _can_pack(self) -> bool:
        """Try the packed attention, and how positions are counted; keep what gives equal vectors.

        RoBERTa and its kind count positions from the padding id plus one.
        """
        self.packs = False
        expected = self._run_probe()
        usual = self._model.config._attn_implementation
        why = "its vectors differ from those of padded batches"
        self.packs = True
        try:
            self._model.set_attn_implementation(IMPLEMENTATION)
            for offset in (0, self.pad_id + 1):
                self._position_offset = offset
                if not differs(self._run_probe(), expected, TOLERANCE[self._dtype]):
                    return True
        except (CannotPackError, ValueError, TypeError, IndexError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}"
        self._model.set_attn_implementation(usual)
        _log.warning(
            "a %s runs on padded batches, more slowly than without padding: %s",
            self._model.config.model_type,
            why,
        )
        return False
