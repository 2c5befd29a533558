"""LoRA adapters (Hu et al. 2021) beside a model's linear layers, each for its own rows of a step.

Read from the layout of the peft library: adapter_config.json and adapter_model.safetensors. Several
are resident at once, and rows of the same step may belong to different ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omai_ray.engines.checkpoint import ADAPTER_WEIGHTS, check_adapter
from omai_ray.engines.wiring import rewire
from omai_ray.errors import CheckpointError
from omai_ray.text.tokenizer import read_json

_PREFIX = "base_model.model."
_PARTS = {".lora_A.weight": 0, ".lora_B.weight": 1}
# What else peft can do to a model, which is not done here: refused, not ignored.
_UNSUPPORTED = ("use_dora", "modules_to_save", "alpha_pattern", "fan_in_fan_out", "lora_bias")

# Beginnings with which peft changes the base model's own weights, which are not part of an adapter.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass
class Rows:
    """Which rows of the step that runs now belong to which adapter."""

    spans: list[tuple[str, slice]] = field(default_factory=list)


class LoraLinear(nn.Module):
    """A linear layer and what adapters add to it.

    pairs: an adapter's name -> A [r, N], and B [M, r] times its scale.
    """

    def __init__(
        self, base: nn.Linear, pairs: Mapping[str, tuple[Tensor, Tensor]], rows: Rows
    ) -> None:
        super().__init__()
        self.base = base
        self._pairs = pairs
        self._rows = rows

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., T, M] for [..., T, N]."""
        # A view, so that nothing that is joined to the base's product passes the adapters by.
        out: Tensor = self.base(values).view(*values.shape[:-1], -1)
        for name, span in self._rows.spans:
            if (pair := self._pairs.get(name)) is not None:
                down, up = pair
                out[..., span, :] += (values[..., span, :] @ down.T) @ up.T
        return out


def add_adapters(model: Any, directories: Mapping[str, Path]) -> Rows:
    """Put adapters beside a model's layers. Returns what says whose rows are computed.

    Raises CheckpointError for an adapter that cannot be read, does not fit the model, or does more
    than LoRA.
    """
    rows = Rows()
    layers = dict(model.named_modules())
    pairs: dict[nn.Linear, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, directory in directories.items():
        for path, (down, up) in _read(directory).items():
            layer = layers.get(path)
            if not isinstance(layer, nn.Linear) or layer is model.get_output_embeddings():
                raise CheckpointError(f"{directory}: adapts {path}, no linear layer of this model")
            if (up.shape[0], down.shape[1]) != (layer.out_features, layer.in_features):
                raise CheckpointError(f"{directory}: {path} has another size in this model")
            weight = layer.weight
            pairs.setdefault(layer, {})[name] = (down.to(weight), up.to(weight))
    rewire(model, {layer: LoraLinear(layer, found, rows) for layer, found in pairs.items()})
    return rows


def _read(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B times the scale of each layer, float32, by its path in the model."""
    check_adapter(directory)
    config = read_json(directory / "adapter_config.json")
    weights = directory / ADAPTER_WEIGHTS
    more = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        more.append("bias")
    if str(config.get("init_lora_weights")).startswith(_CHANGED_BASE):
        more.append(f"init_lora_weights {config['init_lora_weights']}")
    if more:
        raise CheckpointError(f"{directory}: uses {', '.join(more)}, which is not supported")
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights}: cannot be read: {error}") from error
    parts: dict[str, list[Tensor | None]] = {}
    for key, tensor in tensors.items():
        suffix = next((end for end in _PARTS if key.endswith(end)), None)
        if suffix is None or not key.startswith(_PREFIX) or tensor.ndim != 2:
            raise CheckpointError(f"{weights}: has {key}, which is no part of a LoRA layer")
        path = key.removeprefix(_PREFIX).removesuffix(suffix)
        parts.setdefault(path, [None, None])[_PARTS[suffix]] = tensor.float()
    found = {}
    for path, (down, up) in parts.items():
        if down is None or up is None or down.shape[0] != up.shape[1]:
            raise CheckpointError(f"{weights}: {path} needs lora_A [r, in] and lora_B [out, r]")
        found[path] = (down, up * _scale(config, down.shape[0]))
    return found


def _scale(config: dict[str, Any], rank: int) -> float:
    """Return alpha over the rank, or over its root (Kalajdzievski 2023)."""
    alpha = float(config.get("lora_alpha") or rank)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
