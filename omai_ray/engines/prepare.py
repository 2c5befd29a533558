"""Makes a loaded model faster on the device it is on, its values the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omai_ray.engines.device import has_bfloat16, has_onednn
from omai_ray.engines.linear import PackedLinear, Product, joint, packed
from omai_ray.engines.native.kernels import Kernels, kernels
from omai_ray.engines.native.layers import native_layers
from omai_ray.engines.native.rotary import adopt_rotary
from omai_ray.engines.wiring import Wiring, rewire, watch

# What a model's code raises where it is given, or finds, what it does not expect.
FAILURES = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_log = logging.getLogger(__name__)


def prepare(model: Any, probe: Callable[[], Tensor], expected: Tensor, tolerance: float) -> None:
    """Put prepared layers in the places of a model's own, if it has the same values then.

    probe: runs the model; what it returns may be `tolerance` away from `expected`, as a part of its
    largest value. Where it is further, the layers stay as they are, and a warning says so. Nothing
    is done where the model's device or dtype has no use for it.
    """
    if not _is_useful(model):
        return
    restore_rotary = adopt_rotary(model)
    wiring = watch(model, probe)
    native = kernels(model.dtype, model.device.type)
    for found in dict.fromkeys((native, None)):  # with what they compute, or without
        why = exchange(model, _layers(model, wiring, found), probe, expected, tolerance)
        if not why:
            return
    restore_rotary()
    _log.warning(
        "the layers of a %s cannot be prepared for this device, so it is slower: %s",
        model.config.model_type,
        why,
    )


def exchange(
    model: Any,
    replacements: Mapping[nn.Module, nn.Module],
    probe: Callable[[], Tensor],
    expected: Tensor,
    tolerance: float,
) -> str:
    """Put layers in the places of others, if the model has the values then that `prepare` asks for.

    Returns "" or, where everything is as it was, why.
    """
    if not replacements:
        return ""
    rewire(model, replacements)
    try:
        why = "values differ" if differs(probe(), expected, tolerance) else ""
    except FAILURES as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        _log.info("layers prepared for a %s are given up: %s", model.config.model_type, why)
        rewire(model, {new: old for old, new in replacements.items()})
    return why


def _is_useful(model: Any) -> bool:
    """Tell whether the device, and this torch, have what prepared layers need."""
    if model.device.type == "cuda":
        return True
    multiplied = model.dtype == torch.float32 or (model.dtype == torch.bfloat16 and has_bfloat16())
    return model.device.type == "cpu" and multiplied and has_onednn()


def differs(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Tell whether values are further apart than this part of the largest; NaN is."""
    difference = (found.float() - expected.float()).abs().max()
    return not difference <= tolerance * expected.float().abs().max()


def _layers(model: Any, wiring: Wiring, found: Kernels | None) -> dict[nn.Module, nn.Module]:
    """Return what to put in the places of layers; what kernels compute is not joined elsewhere."""
    on_cpu = model.device.type == "cpu"
    product: Product = PackedLinear if on_cpu else _as_it_is
    native = {} if found is None else native_layers(model, found, product)
    inside = {part for module in native for part in module.modules()}
    rest = Wiring(
        [linear for linear in wiring.linears if linear not in inside],
        [chain for chain in wiring.chains if chain.up not in inside],
        [group for group in wiring.readers if not inside & set(group)],
    )
    return native | (packed(rest) if on_cpu else joint(rest, (), product))


def _as_it_is(linear: nn.Linear) -> nn.Module:
    return linear
