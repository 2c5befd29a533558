"""The embedding engine: texts or token ids in, one vector each out; and what rerankers share.

The Serve replica and the bulk actor build this same class with the same ModelSpec.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.checkpoint import check_safe, hash_files
from omai_ray.engines.device import choose_device, choose_dtype, keep_freed_memory, to_device
from omai_ray.engines.embedding.arriving import Arriving
from omai_ray.engines.embedding.encoder import Encoder, load_encoder, multiplied_weights
from omai_ray.engines.embedding.head import Head, read_head, stated_head
from omai_ray.engines.embedding.lanes import Lanes
from omai_ray.engines.embedding.packing import Ids, Packing, lengths_of
from omai_ray.errors import CheckpointError, ConfigError, ContextTooLong, InvalidRequest
from omai_ray.text.embedding_input import EmbeddingTokenizer, encoder_directory

_log = logging.getLogger(__name__)
Vectors = npt.NDArray[np.float32]

# Tokens that are embedded in one go: by one thread of a CPU, by all of them.
LANE_TOKENS = 2048
STEP_TOKENS = 4096
# And by a GPU: as many as are some tens of milliseconds of work, within these bounds. Fewer would
# not outlast what it takes to start them; more would hold up who comes meanwhile, and take memory.
GPU_STEP_FLOPS = 2e13
GPU_LEAST_TOKENS, GPU_MOST_TOKENS = 2**13, 2**16
# A step of fewer is not worth sharing out.
_LEAST_SHARED_TOKENS = 256
# int8 that is further than this from float32 is a defect of the model's fit, not a choice.
_LEAST_COSINE = 0.98
_CALIBRATION = Path(__file__).with_name("calibration.txt")


class TokenEngine(ABC):
    """Runs a checkpoint on token ids: a row of float32 for each input.

    context: most tokens an input may have. step_tokens: how many are well run in one go.
    vocab_size: ids are below it. dimension: D of the rows. on_cpu: where it runs. tokens,
    computed_tokens: what was run since the start, without and with padding. between_layers: called
    between the layers of an embedding model that runs without padding on a CPU; what it raises ends
    `embed_arrays`.
    """

    vocab_size: int
    dimension: int
    _packs: bool  # a batch costs what its tokens do, not what its padding does

    def __init__(self, spec: ModelSpec, context: int) -> None:
        self.name = spec.name
        self.context = context
        self._device = choose_device(spec.num_gpus, spec.memory_share)
        self._dtype = choose_dtype(spec.dtype, self._device, bfloat16_cpu=True)
        self.on_cpu = self._device.type == "cpu"
        self.step_tokens = STEP_TOKENS
        if self.on_cpu:
            keep_freed_memory()
        self._lanes = Lanes(torch.get_num_threads() if self.on_cpu else 1)
        self.tokens = self.computed_tokens = 0
        self.between_layers: Callable[[], None] | None = None

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> Vectors:
        """Return float32 [N, D], rows in the order of the inputs; errors as in `check`."""
        return self.embed_arrays(self.check(inputs))

    def embed_arrays(self, arrays: list[Ids]) -> Vectors:
        """Embed what `check` returned; inputs of like length share a forward."""
        lengths = lengths_of(arrays)
        vectors = np.empty((len(arrays), self.dimension), dtype=np.float32)
        arriving = Arriving(vectors, self._device)

        def embed(rows: npt.NDArray[np.int64]) -> None:
            arriving.add(rows, self._forward([arrays[row] for row in rows], lengths[rows]))

        batches = self._batches(lengths)
        self._lanes.run(embed, batches)
        arriving.finish()
        self.tokens += (tokens := int(lengths.sum()))
        self.computed_tokens += tokens if self._packs else _with_padding(lengths, batches)
        return vectors

    def check(self, inputs: Sequence[Sequence[int]]) -> list[Ids]:
        """Return inputs as arrays.

        Raises InvalidRequest for an empty input or an id outside the vocabulary, ContextTooLong
        for an input above `context`.
        """
        arrays = [np.asarray(ids, dtype=np.int64) for ids in inputs]
        lengths = lengths_of(arrays)
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

    def _batches(self, lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Return row indices by falling length: a share for each lane, or batches of a budget."""
        order = np.argsort(-lengths, kind="stable")
        lanes = self._lanes.count
        tokens = int(lengths.sum() if self._packs else lengths.max(initial=0) * len(lengths))
        if lanes > 1 and _LEAST_SHARED_TOKENS <= tokens <= lanes * LANE_TOKENS:
            return [order[lane::lanes] for lane in range(min(lanes, len(order)))]
        budget = LANE_TOKENS if lanes > 1 else self.step_tokens
        falling = lengths[order]
        spent = np.cumsum(falling)
        if not self.on_cpu and self._packs:  # alike: a short one has a GPU wait
            steps = -(-tokens // budget)
            ends = np.searchsorted(spent, np.arange(1, steps) * tokens / steps)
            return [rows for rows in np.split(order, ends) if len(rows)]
        batches, start = [], 0
        while start < len(order):
            if self._packs:
                full = int(
                    np.searchsorted(spent, spent[start] - falling[start] + budget, side="right")
                )
            else:
                full = start + budget // int(falling[start])
            end = max(start + 1, full)
            batches.append(order[start:end])
            start = end
        return batches

    def _fit_steps(self, weights: int) -> None:
        """Set the size of a GPU's steps for a model of so many weights a token."""
        if not self.on_cpu:
            fitting = int(GPU_STEP_FLOPS / (2 * weights))
            self.step_tokens = min(max(fitting, GPU_LEAST_TOKENS), GPU_MOST_TOKENS)

    @abstractmethod
    def _forward(self, inputs: list[Ids], lengths: npt.NDArray[np.int64]) -> Tensor:
        """Return float32 [N, D] for inputs of a batch, longest first."""


def _with_padding(lengths: npt.NDArray[np.int64], batches: list[npt.NDArray[np.int64]]) -> int:
    return sum(int(lengths[batch].max()) * len(batch) for batch in batches)


class EmbeddingEngine(TokenEngine):
    """A sentence-embedding checkpoint, loaded and ready.

    int8_cosine: how near int8 is to float32, empty elsewhere.
    Raises CheckpointError or ConfigError where the model cannot be used.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._directory = locate(spec)
        encoder_files = encoder_directory(self._directory)
        check_safe(encoder_files)
        self.tokenizer = EmbeddingTokenizer(self._directory, spec.context, spec.prompt)
        super().__init__(spec, self.tokenizer.context)
        model = load_encoder(encoder_files, self._dtype, self._device)
        self._fit_steps(multiplied_weights(model))
        self._encoder = Encoder(model, self._dtype, self.context)
        self._packs = self._encoder.packs
        self.vocab_size = self._encoder.vocab_size
        self._head = _choose_head(spec, self._directory, self._encoder.width, self._device)
        self.dimension = self._head.dimension
        prompt = [] if self._head.include_prompt else self.tokenizer.prompt_ids()
        self._unpooled = np.asarray(prompt, dtype=np.int64)
        self.int8_cosine = ""
        self._arithmetic = {"dtype": str(self._dtype).removeprefix("torch.")}
        if spec.dtype == "int8":
            self._quantize()
        else:
            self._encoder.prepare()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, special tokens included, never shortened."""
        return self.tokenizer.encode(texts)

    @property
    def unit_length(self) -> bool:
        """Whether vectors are scaled to length 1."""
        return self._head.unit_length

    @torch.inference_mode()
    def _forward(self, inputs: list[Ids], lengths: npt.NDArray[np.int64]) -> Tensor:
        # A GPU is only asked for its layers meanwhile.
        between_layers = self.between_layers if self._device.type == "cpu" else None
        hidden = self._encoder(inputs, between_layers)
        (counts,) = to_device([lengths], self._device)
        placed = self._head.uses_places
        places = Packing(lengths, self._device).positions if placed else counts
        return self._head(hidden, counts, places, self._prompt_tokens(inputs))

    def _prompt_tokens(self, inputs: list[Ids]) -> Tensor | None:
        """Return how many tokens at the start of each input are a prompt that is not pooled."""
        width = len(self._unpooled)
        if not width:
            return None
        prompted = [np.array_equal(ids[:width], self._unpooled) for ids in inputs]
        return torch.tensor(prompted, device=self._device) * width

    def _quantize(self) -> None:
        """Go over to int8, and measure what it costs on texts that did not set its scales."""
        texts = _CALIBRATION.read_text(encoding="utf-8").splitlines()
        inputs = self.check([self.tokenizer.shorten(ids) for ids in self.tokenize(texts)])
        fitted, held_out = inputs[::2], inputs[1::2]
        exact = self.embed_arrays(held_out)
        try:
            self._encoder.quantize(fitted)
            vectors = self.embed_arrays(held_out)
        except (AttributeError, NotImplementedError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"model '{self.name}': dtype int8 does not work for this architecture "
                f"({type(error).__name__}: {error}); use another dtype"
            ) from error
        norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(vectors, axis=1)
        cosines = (exact * vectors).sum(1) / norms
        mean, least = float(cosines.mean()), float(cosines.min())
        self.int8_cosine = f"mean {mean:.5f}, least {least:.5f}"
        if not mean >= _LEAST_COSINE:
            raise ConfigError(
                f"model '{self.name}': in int8 its vectors have a mean cosine of {mean:.4f} to "
                f"those in float32, below {_LEAST_COSINE}; use another dtype"
            )
        _log.info("model '%s' in int8: cosine to float32 %s", self.name, self.int8_cosine)
        self._arithmetic = {
            "dtype": "int8",
            "calibration_sha256": hashlib.sha256(_CALIBRATION.read_bytes()).hexdigest(),
        }

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
            **self._arithmetic,
            "context": self.context,
            "dimension": self.dimension,
        }


def _choose_head(spec: ModelSpec, directory: Path, width: int, device: torch.device) -> Head:
    """Return the checkpoint's own head, or for a bare encoder the one its entry states."""
    if (directory / "modules.json").is_file():
        if spec.pooling is not None:
            raise ConfigError(
                f"model '{spec.name}': pooling is given, and {directory}/modules.json states its "
                "own; remove one of them"
            )
        return read_head(directory, width, device)
    if spec.pooling is None:
        raise CheckpointError(
            f"{directory}: no modules.json, so its pooling is unknown; give `pooling` in the "
            "model's entry, or save the model with sentence-transformers"
        )
    return stated_head(spec.pooling, spec.normalize, width)
