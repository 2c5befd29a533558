"""How token vectors become one vector, as a checkpoint's modules.json says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from omai_ray.errors import CheckpointError
from omai_ray.text.embedding_input import default_prompt
from omai_ray.text.tokenizer import read_json

Pool = Callable[[Tensor, Tensor], Tensor]


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average token vectors, padding left out.

    hidden float [B, T, D]; mask bool [B, T], True for a real token. Returns float32 [B, D].
    Source: Reimers & Gurevych 2019, section 3.
    """
    weights = mask.unsqueeze(-1).to(torch.float32)
    return (hidden.float() * weights).sum(1) / weights.sum(1)


def mean_sqrt_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sum token vectors over the square root of their number; shapes as in mean_pool."""
    weights = mask.unsqueeze(-1).to(torch.float32)
    return (hidden.float() * weights).sum(1) / weights.sum(1).sqrt()


def max_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take each dimension's largest value over the tokens; shapes as in mean_pool."""
    return hidden.float().masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)


def cls_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the first real token's vector; shapes as in mean_pool."""
    return hidden[torch.arange(len(hidden)), mask.int().argmax(1)].float()


def last_token_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the last real token's vector; shapes as in mean_pool."""
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    return hidden[torch.arange(len(hidden)), last].float()


POOLS: dict[str, Pool] = {
    "cls": cls_pool,
    "mean": mean_pool,
    "max": max_pool,
    "mean_sqrt_len_tokens": mean_sqrt_pool,
    "lasttoken": last_token_pool,
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Head:
    """What follows the encoder."""

    pooling: str
    normalize: bool

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool hidden float [B, T, D] by mask bool [B, T] into float32 [B, D]."""
        pooled = POOLS[self.pooling](hidden, mask)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def read_head(directory: Path) -> Head:
    """Return the head that a checkpoint's modules.json describes.

    Raises CheckpointError, naming the module, for one that is not supported.
    """
    path = directory / "modules.json"
    if not path.is_file():
        raise CheckpointError(
            f"{directory}: no modules.json, so its pooling is unknown; save the model with "
            "sentence-transformers (SentenceTransformer(...).save_pretrained(...))"
        )
    pooling, normalize = None, False
    for module in _read_modules(path):
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _read_pooling(directory / module["path"] / "config.json", directory)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise CheckpointError(
                f"{path}: module '{module['type']}' is not supported "
                "(supported: Transformer, Pooling, Normalize)"
            )
    if pooling is None:
        raise CheckpointError(f"{path}: has no Pooling module")
    return Head(pooling, normalize)


def _read_modules(path: Path) -> list[dict[str, str]]:
    try:
        modules: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        return [{"type": module["type"], "path": module["path"]} for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is no list of modules: {error!r}") from error


def _read_pooling(path: Path, directory: Path) -> str:
    config = read_json(path)
    if config.get("include_prompt") is False and default_prompt(directory):
        raise CheckpointError(f"{path}: leaving the prompt out of the pooling is not supported")
    mode = config.get("pooling_mode")
    modes = [mode] if mode else [name for flag, name in _FLAGS.items() if config.get(flag)]
    if len(modes) != 1 or modes[0] not in POOLS:
        raise CheckpointError(
            f"{path}: pooling '{', '.join(map(str, modes)) or 'none'}' is not supported "
            f"(one of: {', '.join(POOLS)})"
        )
    return str(modes[0])
