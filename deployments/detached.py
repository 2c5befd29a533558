"""Actors that outlive whoever started them, and what they keep for when Ray starts them again."""

from __future__ import annotations

from typing import Any

import ray
from ray.experimental import internal_kv

NAMESPACE = "omai"


def detached(kind: type, name: str, *args: Any, max_task_retries: int) -> Any:
    """Return the actor of that name on the cluster, started with these arguments if need be.

    It reserves no CPU, and Ray starts it again without end.
    """
    actor: Any = ray.remote(kind)
    return actor.options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=max_task_retries,
    ).remote(*args)


def keep(key: bytes, value: bytes) -> None:
    """Put a value into the cluster's own key-value store, which outlives the node."""
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=NAMESPACE.encode())


def kept(key: bytes) -> bytes | None:
    """Return what was put there last."""
    value: bytes | None = internal_kv._internal_kv_get(key, namespace=NAMESPACE.encode())
    return value


def forget(key: bytes) -> None:
    """Remove what was put there."""
    internal_kv._internal_kv_del(key, namespace=NAMESPACE.encode())
