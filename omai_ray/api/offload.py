"""Work that is done at once where it is small, and off the event loop where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_INLINE_CHARACTERS = 20_000
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def inline_or_thread(
    characters: int,
    work: Callable[Arguments, Result],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Result:
    """Return what `work` does. characters: how much it is about; few are not worth a thread."""
    if characters <= _INLINE_CHARACTERS:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
