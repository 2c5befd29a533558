"""What Ray has free, node by node: an actor is on one, however much all have together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node

from omai_ray.catalog import may_be_on


def free_nodes(options: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return what is free on each node that an actor with these options may be on."""
    wanted = options.get("label_selector", {})
    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        free.get(node["NodeID"], {})
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and may_be_on(node["Labels"], wanted)
    ]
