"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LIKENESS = 0.75
_LONGEST = 200


def meant(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like another, None where none is, or only its opposite."""
    if len(name) > _LONGEST:
        return None
    near = get_close_matches(name, list(names), 3, _LIKENESS)
    opposites = {name.replace("min", "max"), name.replace("max", "min")} - {name}
    return next((other for other in near if other not in opposites), None)
