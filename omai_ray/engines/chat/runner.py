"""A causal model of transformers, run on steps of a scheduler."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.arena import Arena, extent_size
from omai_ray.engines.chat.scheduler import Copy, Piece
from omai_ray.engines.chat.slot_attention import (
    IMPLEMENTATION,
    CannotServeError,
    Chunk,
    KeyValues,
    Neighbours,
    Step,
)
from omai_ray.engines.device import choose_device, choose_dtype
from omai_ray.engines.linear import differs, prepare
from omai_ray.errors import CheckpointError, ConfigError

_log = logging.getLogger(__name__)
LEAST_EXTENT = 64
# How far logits may be from those of a plain forward, as a part of the largest.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# Of the memory that is free once the weights are loaded.
_SHARE_OF_FREE = {"cpu": 0.4, "cuda": 0.9}
_UNSERVABLE = (
    CannotServeError,
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Runner:
    """Loads a checkpoint and computes steps; it holds the keys and values of all sequences.

    context: the longest sequence. That the model can be run so is found out at load, by comparing
    with a plain forward. Raises CheckpointError or ConfigError where it cannot be served.
    """

    def __init__(self, spec: ModelSpec, directory: Path, context: int) -> None:
        self._device = choose_device(spec.num_gpus)
        dtype = choose_dtype(spec.dtype, self._device, bfloat16_cpu=False)
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        self._model: Any = model.to(self._device).eval().requires_grad_(False)
        self._dtype = dtype
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        stops = model.generation_config.eos_token_id
        self.stop_token_ids = frozenset([stops] if isinstance(stops, int) else stops or [])
        accepted = inspect.signature(self._model.forward).parameters
        self._placed = "position_ids" in accepted
        self._memory = KeyValues(0)
        self._adopt(context)
        self.arena = Arena(self._places(spec, context), LEAST_EXTENT)
        self._memory = KeyValues(self.arena.total)

    @torch.inference_mode()
    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy keys and values, in order."""
        for copy in copies:
            self._memory.copy(copy.source, copy.target, copy.count)

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """Compute pieces; those of one token that follow each other in the arena best adjacent.

        Returns float32 [N, V]: the logits after each of the N pieces that are the last of their
        sequence, in order.
        """
        step, positions = _layout(pieces, self._device)
        ids = [
            token
            for piece in pieces
            for token in piece.sequence.tokens[piece.start : piece.start + piece.count]
        ]
        ends = itertools.accumulate(piece.count for piece in pieces)
        drawn = [end - 1 for piece, end in zip(pieces, ends, strict=True) if piece.last]
        return self._forward(ids, positions, step, drawn)

    def _forward(self, ids: list[int], positions: Tensor, step: Step, drawn: list[int]) -> Tensor:
        options: dict[str, Any] = {"position_ids": positions[None]} if self._placed else {}
        out = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(drawn, device=self._device),
            step=step,
            memory=self._memory,
            **options,
        )
        logits: Tensor = out.logits[0].float().cpu()
        return logits

    @torch.inference_mode()
    def _adopt(self, context: int) -> None:
        """Have the model attend in slots, and its layers prepared, if its logits stay the same."""
        length = min(context, 2 * self._window() + 12, 4096)
        ids = np.random.default_rng(0).integers(0, self.vocab_size, length).tolist()
        expected = (
            self._model(input_ids=torch.tensor([ids], device=self._device), use_cache=False)
            .logits[0, -3:]
            .cpu()
        )
        tolerance = _TOLERANCE[self._dtype]
        try:
            self._model.set_attn_implementation(IMPLEMENTATION)
            if differs(self._probe(ids), expected, tolerance):
                raise CannotServeError("its logits differ from those of a plain forward")
        except _UNSERVABLE as error:
            raise CheckpointError(
                f"a {self._model.config.model_type} model cannot be served by the `transformers` "
                f"engine: {error}"
            ) from error
        prepare(self._model, lambda: self._probe(ids), expected, tolerance)

    def _probe(self, ids: list[int]) -> Tensor:
        """Return the logits after the last three tokens, computed in two chunks and a decode."""
        self._memory = KeyValues(2 * len(ids))
        start, first, last = len(ids), len(ids) // 2, len(ids) - 1
        logits = []
        for past, end in ((0, first), (first, last), (last, len(ids))):
            rows = torch.arange(past, end, device=self._device)
            chunks = [Chunk(0, end - past, start, past)] if end < len(ids) else []
            alone = [] if chunks else [Neighbours(0, start, len(ids), (len(ids),))]
            step = Step(chunks, alone, rows + start)
            drawn = list(range(max(0, end - past - 2), end - past))
            logits.append(self._forward(ids[past:end], rows, step, drawn))
        return torch.cat(logits)[-3:]

    def _window(self) -> int:
        return int(getattr(self._model.config.get_text_config(), "sliding_window", None) or 0)

    def _places(self, spec: ModelSpec, context: int) -> int:
        """Return for how many tokens there is memory: enough for one sequence, at most for all."""
        each = self._memory.bytes_per_place
        longest = extent_size(context, LEAST_EXTENT)
        wanted = longest * spec.max_running_requests
        if spec.kv_cache_gib is not None:
            room = int(spec.kv_cache_gib * 2**30)
        else:
            room = int(_free_bytes(self._device) * _SHARE_OF_FREE[self._device.type])
        places = min(wanted, room // each)
        if places < longest:
            raise ConfigError(
                f"model '{spec.name}': the keys and values of one sequence of {context} tokens "
                f"need {longest * each / 2**30:.2f} GiB, and there are {room / 2**30:.2f}; lower "
                "`context` or raise `kv_cache_gib`"
            )
        _log.info(
            "model '%s': room for the keys and values of %d tokens, %.2f GiB",
            *(spec.name, places, places * each / 2**30),
        )
        return places


def _layout(pieces: Sequence[Piece], device: torch.device) -> tuple[Step, Tensor]:
    """Return how pieces attend, and the position of each of their tokens, int64 [T]."""
    chunks: list[Chunk] = []
    groups: list[list[Piece]] = []
    places, positions = [], []
    row = 0
    rows: list[int] = []
    for piece in pieces:
        extent = piece.stored.extent
        offsets = np.arange(piece.start, piece.start + piece.count)
        positions.append(offsets)
        places.append(offsets + extent.start)
        if piece.count > 1:
            chunks.append(Chunk(row, piece.count, extent.start, piece.start))
        elif groups and _follows(piece, groups[-1][-1]) and rows[-1] + len(groups[-1]) == row:
            groups[-1].append(piece)
        else:
            groups.append([piece])
            rows.append(row)
        row += piece.count
    neighbours = [
        Neighbours(
            first,
            group[0].stored.extent.start,
            group[0].stored.extent.size,
            tuple(piece.start + 1 for piece in group),
        )
        for first, group in zip(rows, groups, strict=True)
    ]
    where, when = (torch.from_numpy(np.concatenate(parts)) for parts in (places, positions))
    return Step(chunks, neighbours, where.to(device)), when.to(device)


def _follows(piece: Piece, before: Piece) -> bool:
    extent, other = piece.stored.extent, before.stored.extent
    return extent.size == other.size and extent.start == other.start + other.size


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
