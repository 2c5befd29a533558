"""Who does something that the audit log keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """Someone who acts on accounts, users, keys or sessions.

    id: a user's or key's id, `cli:` and the system's user, `anonymous`, or `system`. source: where
    the request came from, if it was one.
    """

    id: str
    name: str | None = None
    source: str | None = None


SYSTEM = Actor("system")
