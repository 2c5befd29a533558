"""A GGUF file, run by llama.cpp on steps of the scheduler: the fastest for few streams on a CPU.

llama.cpp keeps the keys and values; each sequence has one of its slots, for a whole context. What a
slot holds beyond what the scheduler continues is removed first, so a step can be repeated.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.arena import Slots
from omai_ray.engines.chat.memory import affordable_places
from omai_ray.engines.chat.scheduler import Copy, Piece
from omai_ray.engines.checkpoint import gguf_file
from omai_ray.engines.device import choose_device
from omai_ray.errors import CheckpointError, ConfigError, ServerError
from omai_ray.text.tokenizer import TextTokenizer

try:
    import llama_cpp as lib
except ImportError as error:
    raise ConfigError(
        "engine llama-cpp needs llama-cpp-python: pip install 'omai-ray[llama-cpp]'"
    ) from error

_log = logging.getLogger(__name__)
_CONTEXT_STEP = 256  # llama.cpp rounds a slot's context up to this
_MOST_SLOTS = 256  # as llama.cpp is built
_SAMPLED_TOKENS = 256
_STEP_TOKENS = 512
_BATCH_TOKENS = 1024  # more than the scheduler's steps have, with a token of each slot
_FAILURES = {1: "no room in the cache", 2: "aborted", -1: "invalid batch"}
_WARNINGS = (3, 4)  # ggml's log levels: a warning, an error; 5 goes on with the line before


class LlamaCppRunner:
    """Implements the batching engine's Runner over a directory with one .gguf file.

    The directory also has the model's config.json, tokenizer.json and chat template. The weights'
    type is the file's; keys and values are float16, or float32 where that is the entry's dtype.
    """

    def __init__(self, spec: ModelSpec, directory: Path, context: int) -> None:
        self.between_layers: Callable[[], None] | None = None  # llama.cpp runs a step in one go
        file = gguf_file(directory)
        device = choose_device(spec.num_gpus, spec.memory_share)
        lib.llama_backend_init()
        lib.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
        self._model = _load(file, on_gpu=device.type == "cuda")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        self.step_tokens = _STEP_TOKENS
        self._check_tokenizer(directory)
        self.stop_token_ids = frozenset(
            token for token in range(self.vocab_size) if lib.llama_vocab_is_eog(self._vocab, token)
        )
        width = -(-context // _CONTEXT_STEP) * _CONTEXT_STEP
        exact = spec.dtype == "float32"
        kind = lib.GGML_TYPE_F32 if exact else lib.GGML_TYPE_F16
        each = _bytes_per_place(self._model, 4 if exact else 2)
        held = int(lib.llama_model_size(self._model))
        room = affordable_places(spec, width, each, device, loaded_bytes=held)
        slots = min(_MOST_SLOTS, room // width)
        self.places = Slots(slots, width)
        self._context = self._start(slots, width, kind)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy keys and values, in order; llama.cpp copies a slot whole."""
        for copy in copies:
            self._clear(copy.target, 0)
            lib.llama_memory_seq_cp(self._memory, copy.source, copy.target, -1, -1)
            self._clear(copy.target, copy.count)

    def run(self, pieces: Iterable[Piece]) -> Tensor:
        """Compute pieces; returns float32 [N, V], the logits after those that are the last."""
        batch = self._batch
        drawn = []
        count = 0
        for piece in pieces:
            slot = piece.stored.extent.start
            self._clear(slot, piece.start)
            for place in range(piece.start, piece.start + piece.count):
                batch.token[count] = piece.sequence.tokens[place]
                batch.pos[count] = place
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = slot
                batch.logits[count] = False
                count += 1
            if piece.last:
                batch.logits[count - 1] = True
                drawn.append(count - 1)
        batch.n_tokens = count
        status = lib.llama_decode(self._context, batch)
        if status:
            raise ServerError(f"llama.cpp: {_FAILURES.get(status, f'error {status}')}")
        logits = torch.empty(len(drawn), self.vocab_size)
        for row, index in enumerate(drawn):
            found = lib.llama_get_logits_ith(self._context, index)
            logits[row] = torch.from_numpy(np.ctypeslib.as_array(found, (self.vocab_size,)))
        return logits

    def _clear(self, slot: int, start: int) -> None:
        """Remove what a slot holds from a place on."""
        if not lib.llama_memory_seq_rm(self._memory, slot, start, -1):
            raise ServerError("llama.cpp cannot take back a part of this model's state")

    def _start(self, slots: int, width: int, kind: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = slots * width
        params.n_seq_max = slots
        params.n_batch = params.n_ubatch = _BATCH_TOKENS
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.type_k = params.type_v = kind
        params.kv_unified = False
        params.swa_full = True  # else what is outside a window could not be shared or repeated
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise CheckpointError("llama.cpp cannot make a context for this model; see the log")
        return context

    def _check_tokenizer(self, directory: Path) -> None:
        """Raise CheckpointError where tokenizer.json is another model's, by a sample of tokens."""
        tokenizer = TextTokenizer(directory)
        size = tokenizer.vocab_size
        alike = size <= self.vocab_size and all(
            tokenizer.backend.id_to_token(token)
            in (None, lib.llama_vocab_get_text(self._vocab, token).decode(errors="replace"))
            for token in range(0, size, max(1, size // _SAMPLED_TOKENS))
        )
        if not alike:
            raise CheckpointError(
                f"{directory}: the tokens of tokenizer.json ({size}) are not those of the GGUF "
                f"file ({self.vocab_size}); they belong to different models"
            )


def _load(file: Path, *, on_gpu: bool) -> Any:
    params = lib.llama_model_default_params()
    params.n_gpu_layers = -1 if on_gpu else 0
    model = lib.llama_model_load_from_file(str(file).encode(), params)
    if not model:
        raise CheckpointError(f"{file}: llama.cpp cannot load it; the log says why")
    if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
        raise CheckpointError(
            f"{file}: a recurrent model, whose state cannot be shared or taken back in part"
        )
    return model


def _bytes_per_place(model: Any, element_size: int) -> int:
    """Return bytes of one token's keys and values in all layers."""
    heads = lib.llama_model_n_head_kv(model)
    width = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
    name = _metadata(model, "general.architecture")
    widths = sum(
        int(_metadata(model, f"{name}.attention.{part}_length") or width)
        for part in ("key", "value")
    )
    return int(lib.llama_model_n_layer(model) * heads * widths * element_size)


def _metadata(model: Any, key: str) -> str:
    """Return a value of the file's metadata, empty where it is absent."""
    buffer = ctypes.create_string_buffer(256)
    size = lib.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode() if size >= 0 else ""


def _log_line(level: int, text: bytes, user_data: object) -> None:
    line = text.decode(errors="replace").strip()
    if line:
        _log.log(logging.WARNING if level in _WARNINGS else logging.DEBUG, "llama.cpp: %s", line)


_LOG_CALLBACK = lib.llama_log_callback(_log_line)
