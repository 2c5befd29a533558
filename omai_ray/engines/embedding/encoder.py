"""The transformer of an embedding checkpoint: ids in, one vector a token out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from omai_ray.engines.embedding.packing import IMPLEMENTATION, CannotPackError, Packing

Ids = npt.NDArray[np.int64]

# How far two ways of computing the same vectors may be apart, as a part of the largest value.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_PROBE_LENGTHS = (7, 3, 3)
_log = logging.getLogger(__name__)


class Encoder:
    """Any encoder or decoder that transformers can load, run without padding where it can be.

    Whether it can is found out at load: packed and padded must give the same vectors. A model
    that cannot be packed runs on padded batches, and a warning says why.
    """

    def __init__(
        self, directory: Path, dtype: torch.dtype, device: torch.device, context: int
    ) -> None:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        loader = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
        model: Any = loader.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        self._model = model.to(device).eval()
        self._device = device
        text_config = self._model.config.get_text_config()
        self.vocab_size = int(self._model.get_input_embeddings().num_embeddings)
        self.width = int(text_config.hidden_size)
        self._pad_id = int(getattr(text_config, "pad_token_id", None) or 0)
        accepted = inspect.signature(self._model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}
        self._typed = "token_type_ids" in accepted
        self._placed = "position_ids" in accepted
        self._position_offset = 0
        self.packs = self._can_pack(dtype, min(context, self._probe_length(text_config)))

    def __call__(self, inputs: Sequence[Ids], packing: Packing) -> Tensor:
        """Return the last hidden state of every token, [T, D], sequences end to end as packed."""
        if self.packs:
            return self._packed(inputs, packing)
        return self._padded(inputs, packing)

    @torch.inference_mode()
    def _packed(self, inputs: Sequence[Ids], packing: Packing) -> Tensor:
        ids = torch.from_numpy(np.concatenate(inputs)).to(self._device)[None]
        options: dict[str, Any] = dict(self._options)
        if self._typed:
            options["token_type_ids"] = torch.zeros_like(ids)
        if self._placed:
            options["position_ids"] = packing.positions[None] + self._position_offset
        out = self._model(input_ids=ids, attention_mask=None, packing=packing, **options)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def _padded(self, inputs: Sequence[Ids], packing: Packing) -> Tensor:
        real = np.arange(packing.lengths.max()) < packing.lengths[:, None]
        ids = np.full(real.shape, self._pad_id, dtype=np.int64)
        ids[real] = np.concatenate(inputs)
        mask = torch.from_numpy(real).to(self._device)
        hidden: Tensor = self._model(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=mask.long(),
            **self._options,
        ).last_hidden_state
        return hidden[mask]

    def _probe_length(self, config: Any) -> int:
        """Return a length at which a sliding window, if the model has one, matters."""
        return 2 * int(getattr(config, "sliding_window", None) or 0) + 9

    def _can_pack(self, dtype: torch.dtype, longest: int) -> bool:
        """Try the packed attention, and how positions are counted; keep what gives equal vectors.

        RoBERTa and its kind count positions from the padding id plus one.
        """
        lengths = np.array([longest, *(min(n, longest) for n in _PROBE_LENGTHS)], dtype=np.int64)
        rng = np.random.default_rng(0)
        inputs = [rng.integers(0, self.vocab_size, n) for n in lengths]
        for ids in inputs:
            ids[ids == self._pad_id] = (self._pad_id + 1) % self.vocab_size
        packing = Packing(lengths, self._device)
        expected = self._padded(inputs, packing).float()
        usual = self._model.config._attn_implementation
        why = "its vectors differ from those of padded batches"
        try:
            self._model.set_attn_implementation(IMPLEMENTATION)
            for offset in (0, self._pad_id + 1):
                self._position_offset = offset
                found = self._packed(inputs, packing).float()
                if (found - expected).abs().max() <= _TOLERANCE[dtype] * expected.abs().max():
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
