"""Who comes next among accounts that wait. Free of torch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of accounts, each present from `join` to `leave`, and waiting for part of that time.

    Among accounts, who was served least comes first (the virtual token counter of Sheng et al.
    2024); within one, who came first.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}
        self._served: dict[str, int] = {}  # tokens, of accounts that are present
        self._present: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        """Yield all that wait."""
        for waiting in self._waiting.values():
            yield from waiting

    def join(self, account: str, item: Item) -> None:
        """Let an item wait for its turn."""
        if account not in self._served:
            self._served[account] = min(self._served.values(), default=0)
        self._present[account] += 1
        self._waiting.setdefault(account, deque()).append(item)

    def heads(self) -> Iterator[Item]:
        """Yield the first of each account, who was served least first."""
        for account in sorted(self._waiting, key=self._served.__getitem__):
            yield self._waiting[account][0]

    def take(self, account: str, item: Item) -> None:
        """Let it wait no longer."""
        self._waiting[account].remove(item)
        if not self._waiting[account]:
            del self._waiting[account]

    def put_back(self, account: str, item: Item) -> None:
        """Let it wait again, before all others of its account."""
        self._waiting.setdefault(account, deque()).appendleft(item)

    def serve(self, account: str, tokens: int) -> None:
        """Note what an account was given."""
        self._served[account] += tokens

    def leave(self, account: str) -> None:
        """Forget one item that waits no longer, and its account with its last one."""
        self._present[account] -= 1
        if not self._present[account]:
            del self._present[account], self._served[account]
