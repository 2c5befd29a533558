"""A causal model of transformers, run on steps of a scheduler."""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from omai_ray.catalog import ModelSpec, locate_adapters
from omai_ray.engines.chat.arena import Arena, Extent, extent_size
from omai_ray.engines.chat.decode_graphs import DecodeGraphs
from omai_ray.engines.chat.decoder_layer import decoder_layers
from omai_ray.engines.chat.gpu_attention import Singles, layout
from omai_ray.engines.chat.lora import add_adapters
from omai_ray.engines.chat.memory import affordable_places
from omai_ray.engines.chat.prefixes import Stored
from omai_ray.engines.chat.protocol import GenerationRequest
from omai_ray.engines.chat.scheduler import Copy, Piece
from omai_ray.engines.chat.scheduler import Sequence as Generating
from omai_ray.engines.chat.slot_attention import (
    IMPLEMENTATION,
    CannotServeError,
    Chunk,
    KeyValues,
    Neighbours,
    Step,
)
from omai_ray.engines.device import choose_device, choose_dtype, has_bfloat16, keep_freed_memory
from omai_ray.engines.flash import HALF
from omai_ray.engines.native.kernels import kernels
from omai_ray.engines.prepare import differs, exchange, prepare
from omai_ray.errors import CheckpointError

LEAST_EXTENT = 64
# So many that their products fill the device, and no more: others wait for a step to end.
_STEP_TOKENS = {"cpu": 512, "cuda": 2048}
_log = logging.getLogger(__name__)
# How far logits may be from those of a plain forward, as a part of the largest.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_UNSERVABLE = (
    CannotServeError,
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TransformersRunner:
    """Loads a checkpoint and computes steps; it holds the keys and values of all sequences.

    context: the longest sequence. That the model can be run so is found out at load, by comparing
    with a plain forward. Raises CheckpointError or ConfigError where it cannot be served.
    """

    def __init__(self, spec: ModelSpec, directory: Path, context: int) -> None:
        # On a GPU it would be of no use: layers are only asked for when it is called.
        self.between_layers: Callable[[], None] | None = None
        self._device = choose_device(spec.num_gpus, spec.memory_share)
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
        on_cpu = self._device.type == "cpu"
        self._half = on_cpu and dtype == torch.bfloat16 and has_bfloat16()
        self._kernels = kernels(dtype, self._device.type)
        self._packs = not on_cpu and self._kernels is not None and dtype in HALF
        self.step_tokens = _STEP_TOKENS[self._device.type]
        if on_cpu:
            keep_freed_memory()
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        stops = model.generation_config.eos_token_id
        self.stop_token_ids = frozenset([stops] if isinstance(stops, int) else stops or [])
        accepted = inspect.signature(self._model.forward).parameters
        self._placed = "position_ids" in accepted
        self._memory = KeyValues(0)
        self._rows = add_adapters(self._model, locate_adapters(spec))
        self._adopt(context)
        longest = extent_size(context, LEAST_EXTENT)
        each = self._memory.bytes_per_place
        self.places = Arena(affordable_places(spec, longest, each, self._device), LEAST_EXTENT)
        self._memory = KeyValues(self.places.total + 1)  # one that is nobody's
        self._graphs = self._capture(spec)

    @torch.inference_mode()
    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy keys and values, in order."""
        self._memory.copy([(copy.source, copy.target, copy.count) for copy in copies])

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """Compute pieces; those of one token that follow each other in the arena best adjacent.

        Returns float32 [N, V] on the model's device: the logits after each of the N pieces that are
        the last of their sequence, in order. The next call may overwrite them.
        """
        if self._graphs is not None and self._is_graphed(pieces):
            return self._graphs.run(
                [(p.sequence.tokens[p.start], p.start, p.stored.extent.start) for p in pieces]
            )
        spans = [range(piece.start, piece.start + piece.count) for piece in pieces]
        ids = [
            token
            for piece, span in zip(pieces, spans, strict=True)
            for token in piece.sequence.tokens[span.start : span.stop]
        ]
        positions = torch.tensor([place for span in spans for place in span], device=self._device)
        self._rows.spans = _spans(pieces)
        ends = itertools.accumulate(piece.count for piece in pieces)
        drawn = [end - 1 for piece, end in zip(pieces, ends, strict=True) if piece.last]
        kept = torch.tensor(drawn, dtype=torch.long, device=self._device)
        inputs = torch.tensor([ids], device=self._device)
        return self._forward(inputs, positions, self._step(pieces), kept).float()

    def _step(self, pieces: Sequence[Piece]) -> Step:
        if not self._packs:
            return Step(
                *_layout(pieces),
                half=self._half,
                kernels=self._kernels,
                between_layers=self.between_layers,
            )
        spans = [(piece.stored.extent.start, piece.start, piece.count) for piece in pieces]
        singles, packed = layout(spans, self._device)
        return Step(kernels=self._kernels, singles=singles, packed=packed)

    def _forward(self, ids: Tensor, positions: Tensor, step: Step, kept: Tensor | int) -> Tensor:
        """Return the logits [N, V] after the rows that are kept; 0 for all of ids [1, T]."""
        options: dict[str, Any] = {"position_ids": positions[None]} if self._placed else {}
        out = self._model(
            input_ids=ids,
            use_cache=False,
            logits_to_keep=kept,
            step=step,
            memory=self._memory,
            **options,
        )
        logits: Tensor = out.logits[0]
        return logits

    @torch.inference_mode()
    def _capture(self, spec: ModelSpec) -> DecodeGraphs | None:
        """Return graphs of the steps of single tokens, None where there are none."""
        if not self._packs:
            return None

        def forward(ids: Tensor, positions: Tensor, singles: Singles) -> Tensor:
            step = Step(kernels=self._kernels, singles=singles)
            return self._forward(ids, positions, step, 0)

        started = time.perf_counter()
        try:
            graphs = DecodeGraphs(
                forward, spec.max_running_requests, self.places.total, self._device
            )
        except RuntimeError as error:
            _log.warning("model '%s' decodes without CUDA graphs: %s", spec.name, error)
            return None
        _log.info(
            "model '%s': captured %d CUDA graphs in %.1f s",
            *(spec.name, graphs.count, time.perf_counter() - started),
        )
        return graphs

    def _is_graphed(self, pieces: Sequence[Piece]) -> bool:
        """Tell whether a step is of single tokens that are all drawn from, without adapters."""
        return all(
            piece.count == 1 and piece.last and not piece.sequence.request.adapter
            for piece in pieces
        )

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

        memory = self._memory  # with every layer, which a probe that fails leaves out

        def probe() -> Tensor:
            return self._probe(ids)

        prepare(self._model, probe, expected, tolerance)
        layers = decoder_layers(self._model, self._run_in, context)
        exchange(self._model, layers, probe, expected, tolerance)
        self._memory = memory

    def _probe(self, ids: list[int]) -> Tensor:
        """Return the logits after the last three tokens, computed in two chunks and a decode."""
        self._memory = KeyValues(2 * len(ids))
        first, last = len(ids) // 2, len(ids) - 1
        spans = [(0, first), (first, last), (last, len(ids))]
        logits = [self._run_alone(ids, past, end, start=len(ids)) for past, end in spans]
        return torch.cat(logits)[-3:].float().cpu()

    def _run_in(self, memory: KeyValues, past: int, count: int, *, position: int) -> None:
        """Run `count` tokens of a sequence that fills a memory; see `RunAlone`."""
        self._memory = memory
        end = past + count
        self._run_alone([0] * memory.places, past, end, start=0, position=position)

    def _run_alone(
        self, ids: list[int], past: int, end: int, *, start: int, position: int | None = None
    ) -> Tensor:
        """Return the logits after the last two tokens, of those from `past` to `end`.

        start: the first place of a sequence, which has the memory to itself. position: that of the
        first token, where it is not its place in the sequence.
        """
        stored = Stored("", ids, Extent(start, len(ids)))
        sequence = Generating(GenerationRequest("", ids, 1), ids, stored)
        first = past if position is None else position
        rows = torch.arange(first, first + end - past, device=self._device)
        step = self._step([Piece(sequence, stored, past, end - past, True)])
        given = torch.tensor([ids[past:end]], device=self._device)
        kept = torch.arange(max(0, end - past - 2), end - past, device=self._device)
        return self._forward(given, rows, step, kept)

    def _window(self) -> int:
        return int(getattr(self._model.config.get_text_config(), "sliding_window", None) or 0)


def _layout(pieces: Sequence[Piece]) -> tuple[list[Chunk], list[Neighbours]]:
    """Return how pieces attend."""
    chunks: list[Chunk] = []
    groups: list[list[Piece]] = []
    rows: list[int] = []
    row = 0
    for piece in pieces:
        if piece.count > 1:
            chunks.append(Chunk(row, piece.count, piece.stored.extent.start, piece.start))
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
    return chunks, neighbours


def _spans(pieces: Sequence[Piece]) -> list[tuple[str, slice]]:
    """Return which rows belong to which adapter, those side by side together."""
    found: list[tuple[str, slice]] = []
    row = 0
    for adapter, group in itertools.groupby(pieces, lambda p: p.sequence.request.adapter):
        count = sum(piece.count for piece in group)
        if adapter:
            found.append((adapter, slice(row, row + count)))
        row += count
    return found


def _follows(piece: Piece, before: Piece) -> bool:
    extent, other = piece.stored.extent, before.stored.extent
    return extent.size == other.size and extent.start == other.start + other.size
