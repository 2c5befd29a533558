"""What an actor that has a model reserves, and where it may be."""

from __future__ import annotations

from typing import Any

from omai_ray.catalog import ModelSpec


def engine_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the options of an actor with the model's engine."""
    return {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus, **spec.where}


def placed(options: dict[str, Any], placement: dict[str, str]) -> dict[str, Any]:
    """Return an actor's options with the labels of the nodes that it may be on."""
    return {**options, "label_selector": placement} if placement else options
