"""There is always somebody who may administer: nobody could make them otherwise."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, not_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import InvalidRequest
from omai_ray.store.tables import accounts, users


async def has_administrator(connection: AsyncConnection) -> bool:
    """Whether a user of an active account may administer."""
    return await connection.scalar(_working().limit(1)) is not None


async def keep_an_administrator(connection: AsyncConnection, losing: ColumnElement[bool]) -> None:
    """Refuse a change after which nobody could administer.

    losing: the users, or their accounts, that no longer could. Administrators stay locked until
    the transaction ends: two may lose it at the same time.
    """
    locked = select(users.c.id).where(users.c.role == "admin").order_by(users.c.id)
    await connection.execute(locked.with_for_update())
    if not await has_administrator(connection):
        return
    rest = await connection.scalar(_working().where(not_(losing)).limit(1))
    if rest is None:
        raise InvalidRequest(
            "Nobody could administer after this: make another administrator first.", param="role"
        )


def _working() -> Select[tuple[str]]:
    return (
        select(users.c.id)
        .join_from(users, accounts, users.c.account_id == accounts.c.id)
        .where(users.c.role == "admin", accounts.c.status == "active")
    )
