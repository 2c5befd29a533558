"""What a model's deployment is called, and which version of it runs."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

_CODE = ("omai_ray", "deployments")


def deployment_name(model: str) -> str:
    """Return a model's deployment's name: its own, with what Serve does not take replaced.

    Where something is, a digest keeps it apart from others: `a/b` is not `a-b`.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", model)
    if plain != model:
        plain += "-" + hashlib.sha256(model.encode()).hexdigest()[:8]
    return f"model-{plain}"


def version_of(*decides: str) -> str:
    """Return the version of a deployment that some texts, and what is installed, decide.

    While it stays, Serve keeps the replicas; by default each run is another version.
    """
    digest = hashlib.sha256(_code().encode())
    for text in decides:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for package in _CODE:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":  # kernels and built-in models are code too
                digest.update(path.read_bytes())
    return digest.hexdigest()
