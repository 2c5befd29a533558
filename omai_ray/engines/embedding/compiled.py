"""Has torch's compiler join the small operators of a model's layers, on a GPU.

Norms, rotary positions and activations read and write a GPU's memory once each instead of once an
operator; that is most of the time of a model whose products are fast.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from omai_ray.engines.embedding.attention import has_varlen
from omai_ray.engines.prepare import differs

_log = logging.getLogger(__name__)


def compile_layers(
    model: Any, probe: Callable[[], Tensor], expected: Tensor, tolerance: float
) -> None:
    """Compile a model's repeated layers for any number of tokens, if it has the same values then.

    probe: runs the model; what it returns may be `tolerance` away from `expected`, as a part of its
    largest value. Where it is further, or torch cannot compile, the layers stay as they are, and a
    warning says so. Nothing is done where attention is not a single operator.
    """
    layers = repeated_layers(model)
    if not layers or not has_varlen(next(model.parameters())):
        return
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        why = "values differ" if differs(probe(), expected, tolerance) else ""
    except Exception as error:  # of the compiler, of the C compiler it calls, and of the driver
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if why:
        for layer in layers:
            del layer.forward  # what was put in front of the class's own
        _log.warning(
            "the layers of a %s cannot be compiled for this GPU, so it is slower: %s",
            model.config.model_type,
            why,
        )


def repeated_layers(model: nn.Module) -> list[Any]:
    """Return the outermost list of layers in a model that are all of one kind."""
    for module in model.modules():  # parents come before their children
        if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1:
            return list(module)
    return []
