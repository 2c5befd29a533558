"""What a PromQL expression reads."""

from __future__ import annotations

import re

_NAME = re.compile(r"\bray_[a-z0-9_]+")
_BY = re.compile(r"by\s*\(([^)]*)\)")


def names_in(expression: str) -> set[str]:
    """Return the series of Ray's endpoint that an expression reads."""
    return set(_NAME.findall(expression))


def labels_in(expression: str) -> set[str]:
    """Return the labels that an expression groups by."""
    return {
        label.strip() for group in _BY.findall(expression) for label in group.split(",") if label
    }
