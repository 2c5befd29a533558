"""The choice for chat: a replica that has computed the prompt's beginning, if it is not too busy.

Each ingress process chooses for itself, from what it has sent where. Of a session that it does not
know another process may have sent the beginning; so it goes where rendezvous hashing (Thaler &
Ravishankar 1998) of the session points, which is the same in every process.
"""

from __future__ import annotations

import array
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile

BLOCK = 16  # tokens, as the engines' prefix caches have it
# A conversation is told from others by its beginning; 4,096 tokens of it are enough.
_MOST_BLOCKS = 256
# Prefixes that a replica is remembered for: those of a million tokens, 9 MB at most.
_REMEMBERED_BLOCKS = 65_536
_REMEMBERED_SESSIONS = 65_536
# What a request that runs beside costs a new one, as the prompt that could be computed meanwhile.
_REQUEST_BLOCKS = 8
CHOICES = 2


def block_keys(account: str, adapter: str, tokens: Sequence[int]) -> list[bytes]:
    """Return a key for each whole block of a prompt's beginning, that of all up to its end.

    Engines share nothing between accounts and adapters, so that keys differ between them too. They
    are the same in every process.
    """
    key = hashlib.blake2b(repr((account, adapter)).encode(), digest_size=8).digest()
    keys = []
    whole = min(len(tokens) // BLOCK, _MOST_BLOCKS)
    for start, end in pairwise(range(0, (whole + 1) * BLOCK, BLOCK)):
        block = array.array("q", tokens[start:end]).tobytes()
        key = hashlib.blake2b(key + block, digest_size=8).digest()
        keys.append(key)
    return keys


def session_key(account: str, adapter: str, session: str, keys: Sequence[bytes]) -> bytes:
    """Return what all of a session's prompts have in common: its name, else their first block."""
    if not session and keys:
        return keys[0]
    return hashlib.blake2b(repr((account, adapter, session)).encode(), digest_size=8).digest()


class PrefixAffinity:
    """What one process has sent where.

    most_excess: how many requests more than at the least busy one a replica may be at, however
    much of a prompt it has. alone: whether no other process sends requests online, so that what is
    known of how busy replicas are is never out of date.
    """

    def __init__(
        self,
        most_excess: int,
        alone: bool,
        remembered_blocks: int = _REMEMBERED_BLOCKS,
        remembered_sessions: int = _REMEMBERED_SESSIONS,
    ) -> None:
        self._most_excess = most_excess
        self._alone = alone
        self._remembered_blocks = remembered_blocks
        self._remembered_sessions = remembered_sessions
        self._sent: dict[str, OrderedDict[bytes, None]] = {}
        self._sessions: OrderedDict[bytes, str] = OrderedDict()

    def rank(
        self,
        ongoing: Mapping[str, int],
        keys: Sequence[bytes],
        session: bytes,
        *,
        begins: bool = False,
    ) -> list[str]:
        """Return replicas, best first: by what is to be computed there, and what runs beside it.

        A session's own replica is taken to have all of the prompt, for it may have it by way of
        another process, unless the session `begins`. Of those that have nothing of it two, drawn by
        the session, come before the others: processes that all prefer the one that seemed least
        busy a moment ago overrun it (Mitzenmacher 2000).

        ongoing: replica -> how many requests it is at. keys: of the prompt, as from `block_keys`.
        session: what it has in common with those before it.
        """
        least = min(ongoing.values(), default=0)
        known = {
            name: self._known(name, keys)
            for name, count in ongoing.items()
            if count - least <= self._most_excess
        }
        lots = {name: _draw(session, name) for name in ongoing}
        drawn = ongoing if self._alone else sorted(lots, key=lots.__getitem__)[-CHOICES:]
        home = self._sessions.get(session)
        if home not in known:
            home = None if begins else max(known, key=lots.__getitem__, default=None)

        def cost(name: str) -> tuple[bool, int, int]:
            beside = (ongoing[name] - least) * _REQUEST_BLOCKS
            saved = len(keys) if name == home else known.get(name, 0)
            return not saved and name not in drawn, beside - saved, -lots[name]

        return sorted(ongoing, key=cost)

    def note(self, replica: str, keys: Sequence[bytes], session: bytes) -> None:
        """Remember that a prompt went to a replica."""
        sent = self._sent.setdefault(replica, OrderedDict())
        for key in reversed(keys):  # beginnings are forgotten last
            sent[key] = None
            sent.move_to_end(key)
        while len(sent) > self._remembered_blocks:
            sent.popitem(last=False)
        self._sessions[session] = replica
        self._sessions.move_to_end(session)
        if len(self._sessions) > self._remembered_sessions:
            self._sessions.popitem(last=False)

    def keep(self, replicas: set[str]) -> None:
        """Forget all other replicas: those that have ended."""
        for name in self._sent.keys() - replicas:
            del self._sent[name]

    def _known(self, replica: str, keys: Sequence[bytes]) -> int:
        sent = self._sent.get(replica)
        return sum(1 for _ in takewhile(sent.__contains__, keys)) if sent else 0


def _draw(session: bytes, replica: str) -> int:
    digest = hashlib.blake2b(session + replica.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
