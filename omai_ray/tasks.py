"""Coroutines that run side by side and end together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def alongside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run all of it beside what runs within; at the end cancel what still runs, and wait for it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_all(*work: Coroutine[Any, Any, None]) -> None:
    """Return when all of it is done; where one fails, raise that once the others have ended."""
    if len(work) == 1:
        await work[0]
        return
    async with alongside(*work) as tasks:
        await asyncio.gather(*tasks)
