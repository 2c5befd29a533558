"""Where the keys and values of sequences lie: contiguous extents of one arena of token places."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """`size` token places from `start` on."""

    start: int
    size: int


def extent_size(tokens: int, least: int) -> int:
    """Return the size of the extent that holds so many tokens."""
    return max(least, 1 << max(0, tokens - 1).bit_length())


class Arena:
    """Hands out extents, the lowest first, and joins what is given back.

    Contiguous, so that attention reads a sequence in place; sizes are powers of two that divide the
    start, so that neighbours can be read in one go. This is buddy allocation (Knowlton 1965).
    total: token places in all. least: size of the smallest extent, a power of two.
    """

    def __init__(self, total: int, least: int) -> None:
        self.least = least
        self._free: dict[int, set[int]] = {}  # starts by size
        start = 0
        while total - start >= least:
            size = 1 << ((total - start).bit_length() - 1)
            self.free(Extent(start, size))
            start += size
        self.total = start

    @property
    def free_places(self) -> int:
        """How many places are in no extent."""
        return sum(size * len(starts) for size, starts in self._free.items())

    def take(self, tokens: int) -> Extent | None:
        """Return a free extent for so many tokens, or None where none is large enough."""
        wanted = extent_size(tokens, self.least)
        sizes = [size for size, starts in self._free.items() if size >= wanted and starts]
        if not sizes:
            return None
        size = min(sizes)
        start = min(self._free[size])
        self._free[size].remove(start)
        while size > wanted:
            size //= 2
            self._free.setdefault(size, set()).add(start + size)
        return Extent(start, wanted)

    def free(self, extent: Extent) -> None:
        """Take an extent back."""
        start, size = extent.start, extent.size
        while (start ^ size) in self._free.get(size, ()):
            self._free[size].remove(start ^ size)
            start, size = start & ~size, size * 2
        self._free.setdefault(size, set()).add(start)


class Slots:
    """A fixed number of extents, each for a whole context: extent N is the Nth sequence's.

    total: token places in all.
    """

    def __init__(self, count: int, context: int) -> None:
        self._free = list(range(count))
        self._context = context
        self.total = count * context

    def take(self, tokens: int) -> Extent | None:
        """Return the lowest free slot, which holds any number of tokens, or None."""
        if not self._free:
            return None
        self._free.sort()
        return Extent(self._free.pop(0), self._context)

    def free(self, extent: Extent) -> None:
        """Take a slot back."""
        self._free.append(extent.start)
