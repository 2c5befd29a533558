"""Lists a page at a time, in the order of creation, as OpenAI's lists are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, Table, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import InvalidRequest
from omai_ray.store import is_storable

MAX_PAGE = 1000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list; has_more: entries follow, after the last one."""

    items: list[T]
    has_more: bool

    @classmethod
    def of(cls, found: list[T], limit: int) -> Page[T]:
        """Return the page of what a query for one entry too many has found."""
        return cls(found[:limit], len(found) > limit)


async def read_page(
    connection: AsyncConnection, table: Table, statement: Select[Any], after: str | None, limit: int
) -> list[Any]:
    """Return up to `limit` + 1 rows of a statement over `table`, oldest first.

    after: the id of the last entry seen. Raises InvalidRequest where there is none of that id.
    """
    statement = statement.order_by(table.c.created, table.c.id).limit(limit + 1)
    if after is not None:
        created = None
        if is_storable(after):
            created = await connection.scalar(select(table.c.created).where(table.c.id == after))
        if created is None:
            raise InvalidRequest("Invalid 'after': there is no entry of that id.", param="after")
        statement = statement.where(tuple_(table.c.created, table.c.id) > (created, after))
    return list((await connection.execute(statement)).mappings())
