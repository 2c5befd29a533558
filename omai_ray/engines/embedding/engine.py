"""The embedding engine: texts or token ids in, one vector each out.

The Serve replica and the bulk actor build this same class with the same ModelSpec.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.checkpoint import check_safe, hash_files
from omai_ray.engines.device import choose_device, choose_dtype
from omai_ray.engines.embedding.encoder import Encoder, Ids
from omai_ray.engines.embedding.head import Head, read_head, stated_head
from omai_ray.engines.embedding.packing import Packing
from omai_ray.errors import CheckpointError, ConfigError, ContextTooLong, InvalidRequest
from omai_ray.text.embedding_input import EmbeddingTokenizer, encoder_directory

Vectors = npt.NDArray[np.float32]

TOKEN_BUDGET = 4096


class EmbeddingEngine:
    """A sentence-embedding checkpoint, loaded and ready.

    dimension: D of the vectors. context: most tokens an input may have.
    Raises CheckpointError or ConfigError where the model cannot be used.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._directory = locate(spec)
        encoder_files = encoder_directory(self._directory)
        check_safe(encoder_files)
        self.tokenizer = EmbeddingTokenizer(self._directory, spec.context, spec.prompt)
        self.context = self.tokenizer.context
        self._device = choose_device(spec.num_gpus)
        self._dtype = choose_dtype(spec.dtype, self._device, bfloat16_cpu=True)
        self._encoder = Encoder(encoder_files, self._dtype, self._device, self.context)
        self.vocab_size = self._encoder.vocab_size
        self._head = _choose_head(spec, self._directory, self._encoder.width)
        self.dimension = self._head.dimension
        prompt = [] if self._head.include_prompt else self.tokenizer.prompt_ids()
        self._unpooled = np.asarray(prompt, dtype=np.int64)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, special tokens included, never shortened."""
        return self.tokenizer.encode(texts)

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> Vectors:
        """Return float32 [N, D], rows in the order of the inputs; errors as in `check`."""
        return self.embed_arrays(self.check(inputs))

    def embed_arrays(self, arrays: list[Ids]) -> Vectors:
        """Embed what `check` returned; inputs of like length share a forward of TOKEN_BUDGET."""
        lengths = _lengths(arrays)
        vectors = np.empty((len(arrays), self.dimension), dtype=np.float32)
        for rows in _batches(lengths, TOKEN_BUDGET):
            vectors[rows] = self._forward([arrays[row] for row in rows], lengths[rows])
        return vectors

    def check(self, inputs: Sequence[Sequence[int]]) -> list[Ids]:
        """Return inputs as arrays.

        Raises InvalidRequest for an empty input or an id outside the vocabulary, ContextTooLong
        for an input above `context`.
        """
        arrays = [np.asarray(ids, dtype=np.int64) for ids in inputs]
        lengths = _lengths(arrays)
        for row in np.flatnonzero((lengths == 0) | (lengths > self.context)).tolist():
            if lengths[row] == 0:
                raise InvalidRequest(f"input {row} has no token", param="input")
            raise ContextTooLong(
                f"input {row} has {lengths[row]} tokens; the model accepts {self.context}",
                param="input",
            )
        flat = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        outside = np.flatnonzero((flat < 0) | (flat >= self.vocab_size))
        if len(outside):
            row = int(np.searchsorted(lengths.cumsum(), outside[0], side="right"))
            raise InvalidRequest(
                f"input {row} has a token id outside the vocabulary (0 to {self.vocab_size - 1})",
                param="input",
            )
        return arrays

    @torch.inference_mode()
    def _forward(self, inputs: list[Ids], lengths: npt.NDArray[np.int64]) -> Vectors:
        packing = Packing(lengths, self._device)
        hidden = self._encoder(inputs, packing)
        counts = torch.from_numpy(lengths).to(self._device)
        skipped = self._prompt_tokens(inputs)
        vectors: Vectors = self._head(hidden, counts, packing.positions, skipped).cpu().numpy()
        return vectors

    def _prompt_tokens(self, inputs: list[Ids]) -> Tensor | None:
        """Return how many tokens at the start of each input are a prompt that is not pooled."""
        width = len(self._unpooled)
        if not width:
            return None
        prompted = [np.array_equal(ids[:width], self._unpooled) for ids in inputs]
        return torch.tensor(prompted, device=self._device) * width

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
            "head": self._head.described,
            "prompt": self.tokenizer.prompt,
            "dtype": str(self._dtype).removeprefix("torch."),
            "context": self.context,
            "dimension": self.dimension,
        }


def _choose_head(spec: ModelSpec, directory: Path, width: int) -> Head:
    """Return the checkpoint's own head, or for a bare encoder the one its entry states."""
    if (directory / "modules.json").is_file():
        if spec.pooling is not None:
            raise ConfigError(
                f"model '{spec.name}': pooling is given, and {directory}/modules.json states its "
                "own; remove one of them"
            )
        return read_head(directory, width)
    if spec.pooling is None:
        raise CheckpointError(
            f"{directory}: no modules.json, so its pooling is unknown; give `pooling` in the "
            "model's entry, or save the model with sentence-transformers"
        )
    return stated_head(spec.pooling, spec.normalize, width)


def _lengths(arrays: list[Ids]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(len, arrays), dtype=np.int64, count=len(arrays))


def _batches(lengths: npt.NDArray[np.int64], token_budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield row indices by falling length, each batch within the budget (at least one row)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, token_budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
