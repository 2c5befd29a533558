"""Sequences whose keys and values are still there, found by how a new prompt begins."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from omai_ray.engines.chat.arena import Extent

BLOCK = 16  # tokens; a prefix is found by whole blocks, then compared token by token


@dataclass(eq=False, slots=True)
class Stored:
    """A sequence's tokens and where their keys and values lie; those of `computed` are there.

    owner: the account and the adapter it belongs to, with which alone it is shared.
    """

    owner: Hashable
    tokens: list[int]
    extent: Extent
    computed: int = 0
    keys: list[int] = field(default_factory=list)


class Prefixes:
    """An index of what is stored, running and finished. Finished ones may be evicted.

    An account finds its own only, so that the time to a first token tells nothing about others.
    """

    def __init__(self) -> None:
        self._by_key: dict[int, Stored] = {}
        self._finished: OrderedDict[int, Stored] = OrderedDict()

    def note(self, stored: Stored) -> None:
        """Index the blocks that have been computed since the last call."""
        ready = stored.computed // BLOCK
        if ready == len(stored.keys):
            return
        key = stored.keys[-1] if stored.keys else hash(stored.owner)
        for at in range(len(stored.keys), ready):
            key = _next_key(key, stored.tokens, at)
            stored.keys.append(key)
            self._by_key[key] = stored

    def find(self, owner: Hashable, tokens: list[int]) -> tuple[Stored | None, int]:
        """Return what begins like `tokens`, and in how many of them; the last is never counted.

        The last token has to be computed in any case, for what follows it.
        """
        best: Stored | None = None
        for key in _keys(owner, tokens):
            found = self._by_key.get(key)
            if found is None:
                break
            best = found
        if best is None or best.owner != owner:
            return None, 0
        shared, most = 0, min(best.computed, len(tokens) - 1)
        while shared < most and best.tokens[shared] == tokens[shared]:
            shared += 1
        if id(best) in self._finished:
            self._finished.move_to_end(id(best))
        return (best, shared) if shared else (None, 0)

    def finish(self, stored: Stored, *, keep: bool = True) -> None:
        """Keep a sequence that has ended, until its place is needed; before all others if not keep.

        One that is found again is kept like any other.
        """
        self._finished[id(stored)] = stored
        self._finished.move_to_end(id(stored), last=keep)

    def evict(self) -> Stored | None:
        """Forget the finished one that was of no use for longest, and return it."""
        if not self._finished:
            return None
        _, stored = self._finished.popitem(last=False)
        for key in stored.keys:
            if self._by_key.get(key) is stored:
                del self._by_key[key]
        return stored


def _keys(owner: Hashable, tokens: list[int]) -> Iterator[int]:
    key = hash(owner)
    for at in range(len(tokens) // BLOCK):
        key = _next_key(key, tokens, at)
        yield key


def _next_key(key: int, tokens: list[int], block: int) -> int:
    return hash((key, *tokens[block * BLOCK : (block + 1) * BLOCK]))
