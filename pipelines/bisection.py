"""Find the items of a batch that make it fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def bisect(
    run: Callable[[Sequence[Item]], Result], items: Sequence[Item], first: int = 0
) -> Iterator[tuple[int, int, Result | Exception]]:
    """Run a batch; where it fails, its halves, down to the item at fault.

    Yields (index, count, result) in order; an exception stands for the one item that raised it.
    Nothing is run where there are no items.
    """
    if not items:
        return
    try:
        result = run(items)
    except Exception as error:
        if len(items) == 1:
            yield first, 1, error
            return
        middle = len(items) // 2
        yield from bisect(run, items[:middle], first)
        yield from bisect(run, items[middle:], first + middle)
    else:
        yield first, len(items), result
