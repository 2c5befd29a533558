"""What follows the encoder: pooling and the modules after it, as modules.json says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize

from omai_ray.catalog import Pooling
from omai_ray.errors import CheckpointError
from omai_ray.text.embedding_input import read_modules
from omai_ray.text.tokenizer import read_json

Step = Callable[[Tensor], Tensor]
Weights = dict[str, Tensor]


def _reduce(values: Tensor, how: str, lengths: Tensor) -> Tensor:
    """Reduce each sequence of values [T, ...]; that lengths add up to T is known, not looked at."""
    return torch.segment_reduce(values, how, lengths=lengths, axis=0, unsafe=True)


def mean_pool(hidden: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
    """Average each sequence's vectors.

    hidden: float32 [T, D], the vectors of all sequences end to end. lengths: int64 [N], how many
    each has. places: int64 [T], where each stands in its sequence, from 0. Returns float32 [N, D].
    Source: Reimers & Gurevych 2019, section 3.
    """
    return _reduce(hidden, "mean", lengths)


def mean_sqrt_pool(hidden: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
    """Sum each sequence's vectors over the square root of their number; shapes as in mean_pool."""
    return _reduce(hidden, "sum", lengths) / lengths.sqrt()[:, None]


def weighted_mean_pool(hidden: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
    """Average vectors, each weighted by its place from 1; shapes as in mean_pool.

    Source: Muennighoff 2022, section 4.
    """
    weights = (places + 1).to(hidden.dtype)
    summed = _reduce(hidden * weights[:, None], "sum", lengths)
    return summed / _reduce(weights, "sum", lengths)[:, None]


def max_pool(hidden: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
    """Take each dimension's largest value in a sequence; shapes as in mean_pool."""
    return _reduce(hidden, "max", lengths)


def cls_pool(hidden: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
    """Take each sequence's first vector; shapes as in mean_pool."""
    return hidden[lengths.cumsum(0) - lengths]


def last_token_pool(hidden: Tensor, lengths: Tensor, places: Tensor) -> Tensor:
    """Take each sequence's last vector; shapes as in mean_pool."""
    return hidden[lengths.cumsum(0) - 1]


POOLS: dict[Pooling, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": cls_pool,
    "max": max_pool,
    "mean": mean_pool,
    "mean_sqrt_len_tokens": mean_sqrt_pool,
    "weightedmean": weighted_mean_pool,
    "lasttoken": last_token_pool,
}
# In the order in which sentence-transformers puts several of them side by side.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SENTENCE = "sentence_embedding"


@dataclass(frozen=True)
class Head:
    """Token vectors to sentence vectors, in float32 whatever the encoder computes in.

    pooling: the modes, their results side by side. include_prompt: pool the prompt's tokens too.
    steps: the modules after pooling. described: all of it as data, for a fingerprint.
    dimension: D of the vectors.
    """

    pooling: tuple[Pooling, ...]
    include_prompt: bool
    steps: tuple[Step, ...]
    described: tuple[Any, ...]
    dimension: int

    @property
    def unit_length(self) -> bool:
        """Whether vectors are scaled to length 1 in the end."""
        return self.steps[-1:] == (_unit_length,)

    @property
    def uses_places(self) -> bool:
        """Whether it matters where a token stands in its sequence."""
        return not self.include_prompt or "weightedmean" in self.pooling

    def __call__(
        self, hidden: Tensor, lengths: Tensor, places: Tensor, skipped: Tensor | None
    ) -> Tensor:
        """Return float32 [N, D] for hidden [T, W], the vectors of N sequences end to end.

        lengths: int64 [N]. places: int64 [T], where each token stands in its sequence, from 0; of
        any value where `uses_places` is not set.
        skipped: int64 [N], tokens at the start of each sequence that pooling leaves out, or None
        for none at all; a sequence that is nothing else keeps its last.
        """
        hidden = hidden.float()
        if skipped is not None:
            skipped = skipped.minimum(lengths - 1)
            kept = places >= skipped.repeat_interleave(lengths)
            hidden, lengths, places = hidden[kept], lengths - skipped, places[kept]
        pooled = [POOLS[mode](hidden, lengths, places) for mode in self.pooling]
        vectors = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)
        for step in self.steps:
            vectors = step(vectors)
        return vectors


def stated_head(pooling: Pooling, unit_length: bool, width: int) -> Head:
    """Return the head of a bare encoder, as the catalog states it."""
    steps: tuple[Step, ...] = (_unit_length,) if unit_length else ()
    return Head((pooling,), True, steps, (pooling, unit_length), width)


def read_head(directory: Path, width: int, device: torch.device | None = None) -> Head:
    """Return the head that a checkpoint's modules.json describes, for an encoder of this width.

    device: where its vectors are, the CPU where None.
    Raises CheckpointError, naming the module, for one that is not supported.
    """
    path = directory / "modules.json"
    head: Head | None = None
    steps: list[Step] = []
    described: list[Any] = []
    for kind, folder in read_modules(directory):
        if kind == "Transformer":
            continue
        config = read_json(folder / "config.json")
        if kind == "Pooling":
            if head is not None or steps:
                raise CheckpointError(f"{path}: pooling must come once, before all other modules")
            head = _read_pooling(folder / "config.json", config, width)
            width = head.dimension
        elif kind in _READERS:
            weights = _weights(folder, device) if kind in _WEIGHTED else {}
            step, width = _READERS[kind](folder, config, weights, width)
            steps.append(step)
            described.append([kind, config])
        elif kind != "Dropout":
            raise CheckpointError(
                f"{path}: module '{kind}' is not supported (supported: Transformer, Pooling, "
                f"{', '.join(_READERS)}, Dropout)"
            )
    if head is None:
        raise CheckpointError(f"{path}: has no Pooling module")
    pooled = (head.pooling, head.include_prompt)
    return Head(*pooled, tuple(steps), (*pooled, described), width)


def _read_pooling(path: Path, config: dict[str, Any], width: int) -> Head:
    given = config.get("pooling_mode")
    modes: Any = [given] if isinstance(given, str) else given
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    if not modes or any(mode not in POOLS for mode in modes):
        raise CheckpointError(
            f"{path}: pooling '{', '.join(map(str, modes)) or 'none'}' is not supported "
            f"(one or more of: {', '.join(POOLS)})"
        )
    stated = config.get("embedding_dimension", config.get("word_embedding_dimension", width))
    if stated != width:
        raise CheckpointError(f"{path}: pools vectors of {stated}, the encoder gives {width}")
    include_prompt = bool(config.get("include_prompt", True))
    return Head(tuple(modes), include_prompt, (), (), width * len(modes))


def _unit_length(vectors: Tensor) -> Tensor:
    return normalize(vectors, dim=-1)


def _read_normalize(
    folder: Path, config: dict[str, Any], weights: Weights, width: int
) -> tuple[Step, int]:
    _check_fields(folder, config)
    return _unit_length, width


def _read_dense(
    folder: Path, config: dict[str, Any], weights: Weights, width: int
) -> tuple[Step, int]:
    _check_fields(folder, config)
    given = str(config.get("activation_function") or "torch.nn.Identity")
    activation = named_activation(given, f"{folder}/config.json: activation_function")
    weight, bias = weights.get("linear.weight"), weights.get("linear.bias")
    if weight is None or weight.shape[1] != width:
        found = "none" if weight is None else f"{tuple(weight.shape)}"
        raise CheckpointError(f"{folder}: Dense weight is {found}, must take vectors of {width}")
    residual = weights.get("residual.weight")

    def dense(vectors: Tensor) -> Tensor:
        projected: Tensor = activation(linear(vectors, weight, bias))
        if not config.get("use_residual"):
            return projected
        return projected + (vectors if residual is None else linear(vectors, residual))

    return dense, int(weight.shape[0])


def _read_layer_norm(
    folder: Path, config: dict[str, Any], weights: Weights, width: int
) -> tuple[Step, int]:
    weight, bias = weights.get("norm.weight"), weights.get("norm.bias")
    if weight is None or weight.shape != (width,):
        raise CheckpointError(f"{folder}: LayerNorm must have weights for vectors of {width}")
    return lambda vectors: layer_norm(vectors, (width,), weight, bias), width


_READERS: dict[str, Callable[[Path, dict[str, Any], Weights, int], tuple[Step, int]]] = {
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
}
_WEIGHTED = {"Dense", "LayerNorm"}


def _check_fields(folder: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError for a module that works on anything but sentence vectors."""
    for field in ("module_input_name", "module_output_name"):
        if (config.get(field) or _SENTENCE) != _SENTENCE:
            raise CheckpointError(
                f"{folder}/config.json: {field} '{config[field]}' is not supported "
                f"(only '{_SENTENCE}')"
            )


def named_activation(given: str, where: str) -> nn.Module:
    """Return the activation of a name: a class of torch.nn that takes no argument, or none.

    where: the file and field that name it. Raises CheckpointError for any other.
    """
    package, _, name = given.rpartition(".")
    known = {**vars(nn.modules.activation), "Identity": nn.Identity}
    kind = known.get(name) if package.split(".")[0] == "torch" else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise CheckpointError(f"{where} '{given}' is not supported (an activation of torch.nn)")
    try:
        return kind()
    except TypeError as error:
        raise CheckpointError(f"{where} {error}") from error


def _weights(folder: Path, device: torch.device | None) -> Weights:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no model.safetensors; save the model with a current sentence-transformers"
        )
    try:
        return {name: tensor.to(device, torch.float32) for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
