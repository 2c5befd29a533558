"""The embedding engine: texts or token ids in, one vector each out.

The Serve replica and the bulk actor build this same class with the same ModelSpec.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.checkpoint import check_safe, hash_files
from omai_ray.engines.device import choose_device, choose_dtype
from omai_ray.engines.embedding.pooling import read_head
from omai_ray.errors import ContextTooLong, InvalidRequest
from omai_ray.text.embedding_input import EmbeddingTokenizer

Vectors = npt.NDArray[np.float32]

TOKEN_BUDGET = 4096


class EmbeddingEngine:
    """A sentence-embedding checkpoint, loaded and ready.

    dimension: D of the vectors. context: most tokens an input may have.
    Raises CheckpointError or ConfigError where the model cannot be used.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._directory = locate(spec)
        check_safe(self._directory)
        self._head = read_head(self._directory)
        self.tokenizer = EmbeddingTokenizer(self._directory, spec.context)
        self.context = self.tokenizer.context
        self._device = choose_device(spec.num_gpus)
        self._dtype = choose_dtype(spec.dtype, self._device)
        model = AutoModel.from_pretrained(
            self._directory,
            dtype=self._dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        self._model = model.to(self._device).eval()
        self._pad_id = int(self._model.config.pad_token_id or 0)
        self.vocab_size = int(self._model.config.vocab_size)
        self.dimension = int(self._model.config.hidden_size)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, special tokens included, never shortened."""
        return self.tokenizer.encode(texts)

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> Vectors:
        """Return float32 [N, D], rows in the order of the inputs.

        Inputs of like length share a forward, TOKEN_BUDGET tokens at most, padding included.
        Raises InvalidRequest for an empty input or an id outside the vocabulary, ContextTooLong
        for an input above `context`.
        """
        arrays = [np.asarray(ids, dtype=np.int64) for ids in inputs]
        lengths = np.fromiter((len(ids) for ids in arrays), dtype=np.int64, count=len(arrays))
        self._check(arrays, lengths)
        vectors = np.empty((len(arrays), self.dimension), dtype=np.float32)
        for rows in _batches(lengths, TOKEN_BUDGET):
            vectors[rows] = self._forward([arrays[row] for row in rows], lengths[rows])
        return vectors

    def _check(self, arrays: list[npt.NDArray[np.int64]], lengths: npt.NDArray[np.int64]) -> None:
        for row in np.flatnonzero((lengths == 0) | (lengths > self.context)):
            if lengths[row] == 0:
                raise InvalidRequest(f"input {row} has no token", param="input")
            raise ContextTooLong(
                f"input {row} has {lengths[row]} tokens; the model accepts {self.context}",
                param="input",
            )
        for index, ids in enumerate(arrays):
            if ids.min() < 0 or ids.max() >= self.vocab_size:
                raise InvalidRequest(
                    f"input {index} has a token id outside the vocabulary "
                    f"(0 to {self.vocab_size - 1})",
                    param="input",
                )

    @torch.inference_mode()
    def _forward(
        self, inputs: list[npt.NDArray[np.int64]], lengths: npt.NDArray[np.int64]
    ) -> Vectors:
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(inputs)
        real = torch.from_numpy(mask).to(self._device)
        hidden = self._model(
            input_ids=torch.from_numpy(ids).to(self._device), attention_mask=real.long()
        ).last_hidden_state
        vectors: Vectors = self._head(hidden, real).cpu().numpy()
        return vectors

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides a vector's value."""
        canonical = json.dumps(self.provenance, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What the vectors depend on: the checkpoint's files, pooling, dtype, length limit."""
        return {
            "checkpoint_sha256": hash_files(self._directory),
            "pooling": self._head.pooling,
            "normalize": self._head.normalize,
            "dtype": str(self._dtype).removeprefix("torch."),
            "context": self.context,
            "dimension": self.dimension,
        }


def _batches(lengths: npt.NDArray[np.int64], token_budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield row indices by falling length, each batch within the budget (at least one row)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, token_budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
