"""Logins that a cookie carries: opaque, stored hashed, idle and absolute expiry."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from sqlalchemy import ColumnElement, Select, and_, delete, insert, or_, select

from omai_ray.errors import NotFound
from omai_ray.identity.actor import Actor
from omai_ray.identity.audit import AuditLog
from omai_ray.identity.credentials import unauthorized
from omai_ray.settings import SessionSettings
from omai_ray.store import Session, Store, User, is_storable
from omai_ray.store.tables import sessions, users

VALUE_LENGTH = 43  # 256 bits in base64
MAX_SESSIONS = 100
_USER_AGENT_LENGTH = 200


class Sessions:
    """Begins, lists and ends sessions. clock: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        clock: Callable[[], float],
        settings: SessionSettings | None = None,
    ) -> None:
        settings = settings or SessionSettings()
        self._store = store
        self._audit = audit
        self._clock = clock
        self.idle_s = settings.idle_minutes * 60.0
        self.absolute_s = settings.absolute_hours * 3600.0

    async def create(
        self,
        user: User,
        source: str | None = None,
        *,
        replaced: str | None = None,
        user_agent: str | None = None,
    ) -> tuple[Session, str]:
        """Begin a session; return it and the cookie's value, which is stored nowhere.

        replaced: the value that the caller sent; its session ends, so that one that was planted
        before the login is worth nothing after it. Sessions past their end are removed, and a
        user's oldest ones above MAX_SESSIONS. user: as verified; raises Unauthorized where their
        password has changed since, or they are gone.
        """
        now_s = self._clock()
        value = secrets.token_urlsafe(32)
        session = Session(
            id=hashed(value),
            user_id=user.id,
            created=now_s,
            last_seen=now_s,
            expires=now_s + self.absolute_s,
            source=source[:64] if source else None,
            user_agent=_printable(user_agent),
        )
        over = or_(sessions.c.expires <= now_s, sessions.c.last_seen <= now_s - self.idle_s)
        if replaced is not None:
            over = or_(over, sessions.c.id == hashed(replaced))
        actor = Actor(user.id, user.name, source)
        entry = self._audit.entry(actor, "session.login", user.id, user.account_id)
        verified = select(users.c.password_hash).where(users.c.id == user.id)
        async with self._store.writing() as connection:
            # Locked against a change of it, which would end this session had it begun before.
            if await connection.scalar(verified.with_for_update(read=True)) != user.password_hash:
                raise unauthorized("Incorrect username or password.")
            await connection.execute(delete(sessions).where(over))
            await connection.execute(delete(sessions).where(sessions.c.id.in_(_oldest(user.id))))
            await connection.execute(insert(sessions).values(**session.row()))
            await self._audit.write(connection, entry)
        return session, value

    async def list(self, user_id: str) -> list[Session]:
        """Return a user's live sessions, the latest first."""
        now_s = self._clock()
        live = and_(sessions.c.expires > now_s, sessions.c.last_seen > now_s - self.idle_s)
        statement = (
            select(sessions)
            .where(sessions.c.user_id == user_id, live)
            .order_by(sessions.c.created.desc(), sessions.c.id)
        )
        async with self._store.reading() as connection:
            rows = (await connection.execute(statement)).mappings()
            return [Session.from_row(row) for row in rows]

    async def end(self, value: str, source: str | None = None) -> None:
        """End the session of a cookie's value; one that is over already is no error."""
        await self._end("session.logout", sessions.c.id == hashed(value), source=source)

    async def revoke(self, session_id: str, user_id: str, actor: Actor) -> None:
        """End one of a user's sessions by its id; raise NotFound for another's."""
        one = and_(sessions.c.id == session_id, sessions.c.user_id == user_id)
        if not is_storable(session_id) or not await self._end("session.revoke", one, actor):
            raise NotFound("There is no such session.")

    async def revoke_all(self, user_id: str, actor: Actor, kept: str | None = None) -> int:
        """End a user's sessions, but for the one of the id `kept`; return how many."""
        all_of_user = sessions.c.user_id == user_id
        if kept is not None:
            all_of_user = and_(all_of_user, sessions.c.id != kept)
        return await self._end("session.revoke", all_of_user, actor)

    def is_live(self, session: Session) -> bool:
        """Whether neither of its ends has come."""
        now_s = self._clock()
        return now_s < session.expires and now_s < session.last_seen + self.idle_s

    async def _end(
        self,
        action: str,
        which: ColumnElement[bool],
        actor: Actor | None = None,
        source: str | None = None,
    ) -> int:
        """Delete sessions, each with its entry; without an actor it is their users' own doing."""
        owners = select(sessions.c.id, users.c.id, users.c.name, users.c.account_id).join_from(
            sessions, users
        )
        async with self._store.writing() as connection:
            found = (await connection.execute(owners.where(which))).all()
            for session_id, user_id, name, account_id in found:
                by = actor or Actor(user_id, name, source)
                entry = self._audit.entry(by, action, user_id, account_id)
                await self._audit.write(connection, entry)
                await connection.execute(delete(sessions).where(sessions.c.id == session_id))
        return len(found)


def _oldest(user_id: str) -> Select[tuple[str]]:
    """Return which of a user's sessions make way for a new one."""
    return (
        select(sessions.c.id)
        .where(sessions.c.user_id == user_id)
        .order_by(sessions.c.created.desc(), sessions.c.id)
        .offset(MAX_SESSIONS - 1)
    )


def hashed(value: str) -> str:
    """Return a session's id: a stolen database holds no cookie."""
    return hashlib.sha256(value.encode()).hexdigest()


def _printable(text: str | None) -> str | None:
    if text is None:
        return None
    return "".join(c for c in text[:_USER_AGENT_LENGTH] if c.isprintable())
