"""Logins that a cookie carries: opaque, stored hashed, idle and absolute expiry."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from sqlalchemy import delete, insert, or_

from omai_ray.store import Session, Store
from omai_ray.store.tables import sessions

IDLE_S = 8 * 3600.0
ABSOLUTE_S = 7 * 24 * 3600.0
VALUE_LENGTH = 43  # 256 bits in base64


class Sessions:
    """Creates and ends sessions. clock: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        idle_s: float = IDLE_S,
        absolute_s: float = ABSOLUTE_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self.idle_s = idle_s
        self.absolute_s = absolute_s

    async def create(self, user_id: str, replaced: str | None = None) -> tuple[Session, str]:
        """Begin a session; return it and the cookie's value, which is stored nowhere.

        replaced: the value that the caller sent; its session ends, so that one that was planted
        before the login is worth nothing after it. Sessions past their end are removed.
        """
        now_s = self._clock()
        value = secrets.token_urlsafe(32)
        session = Session(hashed(value), user_id, now_s, now_s, now_s + self.absolute_s)
        over = [sessions.c.expires <= now_s, sessions.c.last_seen <= now_s - self.idle_s]
        if replaced is not None:
            over.append(sessions.c.id == hashed(replaced))
        row = {name: getattr(session, name) for name in sessions.c.keys()}  # noqa: SIM118
        async with self._store.writing() as connection:
            await connection.execute(delete(sessions).where(or_(*over)))
            await connection.execute(insert(sessions).values(**row))
        return session, value

    async def end(self, value: str) -> None:
        """End the session of a cookie's value; one that is over already is no error."""
        async with self._store.writing() as connection:
            await connection.execute(delete(sessions).where(sessions.c.id == hashed(value)))

    def is_live(self, session: Session) -> bool:
        """Whether neither of its ends has come."""
        now_s = self._clock()
        return now_s < session.expires and now_s < session.last_seen + self.idle_s


def hashed(value: str) -> str:
    """Return a session's id: a stolen database holds no cookie."""
    return hashlib.sha256(value.encode()).hexdigest()
