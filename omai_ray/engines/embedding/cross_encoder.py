"""The model of a reranker: ids of a query with a document in, one logit out."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from omai_ray.engines.embedding.encoder import TOLERANCE, Encoder, Segments, multiplied_weights
from omai_ray.engines.embedding.packing import Ids, padded
from omai_ray.engines.prepare import differs
from omai_ray.errors import CheckpointError, ConfigError
from omai_ray.text.embedding_input import PairTokenizer

_log = logging.getLogger(__name__)
_SAMPLES = ["a", "", "Tigers sleep by day.", "What is asked for is in here, or it is not. " * 4]
# What follows an encoder takes padded batches: of so many tokens, so that padding stays small.
PADDED_TOKENS = 8192


class CrossEncoder:
    """Any classifier of pairs that transformers can load, of one label.

    Its encoder runs apart, as that of an embedding model does. What it does after that is run as it
    is, in float32, on the encoder's vectors. Whether this gives what the whole model does is found
    out at load; where it does not, the whole model runs on padded batches, and a warning says so.
    weights: how many each token is multiplied by.
    Raises CheckpointError where the directory has no such model, ConfigError for more labels.
    """

    def __init__(
        self, directory: Path, tokenizer: PairTokenizer, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._model = _load(directory, dtype, device)
        self.weights = multiplied_weights(self._model)
        base = self._model.base_model
        self._device = device
        self._segments = _segments(base, directory, tokenizer)
        self.vocab_size = int(base.get_input_embeddings().num_embeddings)
        self._pad_id = int(getattr(base.config.get_text_config(), "pad_token_id", None) or 0)
        self._encoder: Encoder | None = None
        self._take_apart(base, dtype, tokenizer)

    @property
    def packs(self) -> bool:
        """Whether the encoder runs without padding."""
        return self._encoder is not None and self._encoder.packs

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Ids]) -> Tensor:
        """Return float32 [N, 1] for the ids of N pairs, best the longest first."""
        if self._encoder is None:
            return self._whole(inputs, *self._batch(inputs))
        hidden = self._encoder(inputs).float()
        logits = []
        while inputs:
            count = max(1, PADDED_TOKENS // len(inputs[0]))
            ids, mask = self._batch(inputs[:count])
            vectors = hidden.new_zeros(*mask.shape, hidden.shape[1])
            vectors[mask], hidden = hidden.tensor_split([sum(map(len, inputs[:count]))])
            logits.append(self._after_encoder(vectors, ids, mask))
            inputs = inputs[count:]
        return torch.cat(logits)

    def _batch(self, inputs: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        ids, real = padded(inputs, self._pad_id)
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(real).to(self._device)

    def _whole(self, inputs: Sequence[Ids], ids: Tensor, mask: Tensor) -> Tensor:
        options = {}
        if self._segments is not None:
            types, _ = padded([self._segments(sequence) for sequence in inputs], 0)
            options["token_type_ids"] = torch.from_numpy(types).to(self._device)
        logits: Tensor = self._model(input_ids=ids, attention_mask=mask.long(), **options).logits
        return logits.float()

    def _after_encoder(self, vectors: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Run what follows the encoder, in whose place _Given is, on its vectors [N, L, W]."""
        logits: Tensor = self._model(
            input_ids=ids, attention_mask=mask.long(), inputs_embeds=vectors
        ).logits
        return logits.float()

    @torch.inference_mode()
    def _take_apart(self, base: Any, dtype: torch.dtype, tokenizer: PairTokenizer) -> None:
        """Run the encoder apart from what follows it, unless that changes what either gives."""
        inputs = _sample(tokenizer)
        ids, mask = self._batch(inputs)
        seen: list[Tensor] = []
        hook = base.register_forward_hook(lambda _module, _inputs, out: seen.append(out[0]))
        expected = self._whole(inputs, ids, mask)
        hook.remove()
        usual, prefix = base.config._attn_implementation, self._model.base_model_prefix
        setattr(self._model, prefix, _Given(copy.deepcopy(getattr(base, "pooler", None))))
        why = ""
        try:
            encoder = Encoder(base, dtype, tokenizer.context, self._segments)
            if differs(encoder(inputs), seen[0][mask], TOLERANCE[dtype]):
                why = "the vectors of its encoder alone differ"
            elif differs(self._after_encoder(seen[0], ids, mask), expected, TOLERANCE[dtype]):
                why = "scores of its encoder's vectors differ"
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            setattr(self._model, prefix, base)
            base.set_attn_implementation(usual)
            kind = base.config.model_type
            _log.warning("a %s runs whole on padded batches, more slowly: %s", kind, why)
            return
        self._model.float()
        encoder.prepare()
        self._encoder = encoder


class _Given(nn.Module):
    """Stands in the place of an encoder whose vectors are there already."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self._pooler = pooler

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        """Return the vectors as an encoder would, with what its own pooler makes of them."""
        pooled = None if self._pooler is None else self._pooler(inputs_embeds)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=inputs_embeds, pooler_output=pooled
        )


def _load(directory: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a checkpoint's classifier; raise CheckpointError or ConfigError for what is none."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    if config.num_labels != 1:
        kind = (config.architectures or [config.model_type])[0]
        raise ConfigError(
            f"{directory}: is a {kind} of {config.num_labels} labels; a rerank model is a "
            "classifier of one, the score of a document for a query"
        )
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except ValueError as error:
        raise CheckpointError(f"{directory}: is no classifier of texts: {error}") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would make them up
        raise CheckpointError(
            f"{directory}: is no cross-encoder: it has no weights for {', '.join(missing[:3])}"
        )
    return model.to(device).eval().requires_grad_(False)


def _segments(base: Any, directory: Path, tokenizer: PairTokenizer) -> Segments | None:
    """Return how a checkpoint's segments are told from ids, None where all are 0.

    Raises CheckpointError where they cannot be.
    """
    accepted = inspect.signature(base.forward).parameters
    if "token_type_ids" not in accepted or getattr(base.config, "type_vocab_size", 2) < 2:
        return None
    usual = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    if "token_type_ids" not in usual.model_input_names:
        return None
    if not tokenizer.tells_segments:
        raise CheckpointError(
            f"{directory}: its segment ids are not 0 up to a separator and one other after it, "
            "which is all that is supported"
        )
    return lambda ids: np.asarray(tokenizer.segments(ids.tolist()), dtype=np.int64)


def _sample(tokenizer: PairTokenizer) -> list[Ids]:
    """Return a few pairs of several lengths."""
    pairs = tokenizer.encode_pairs("a", _SAMPLES)
    return [np.asarray(tokenizer.shorten_pair(ids), dtype=np.int64) for ids in pairs]
