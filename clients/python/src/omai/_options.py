"""What every call takes beside its own arguments, and how its body is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from openai import NotGiven, Omit, Timeout


class CallOptions(TypedDict, total=False):
    """Options of one call, as openai's own methods take them."""

    extra_headers: Mapping[str, str | Omit] | None
    extra_query: Mapping[str, object] | None
    extra_body: object | None
    timeout: float | Timeout | NotGiven | None


def given(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value: a None is left to the server."""
    return {name: value for name, value in fields.items() if value is not None}
