"""How deeply JSON may be nested: what handles it may recurse."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 64
TOO_DEEP = f"The body is nested too deeply: at most {MAX_DEPTH} levels are accepted."


def is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value is nested more deeply than so many levels."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
