"""The API keys of accounts: created, changed, rotated, revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import InvalidRequest, NotFound
from omai_ray.identity import checks, keys
from omai_ray.identity.accounts import find_account
from omai_ray.identity.paging import MAX_PAGE, Page, read_page
from omai_ray.identity.registry import Change, Registry
from omai_ray.store import ApiKey, Role, is_storable
from omai_ray.store.tables import api_keys

MAX_KEYS = 10_000
GRACE_S = 24 * 3600.0
MAX_GRACE_S = 90 * 24 * 3600.0
_ROTATED = (
    "name",
    "role",
    "account_id",
    "created_by",
    "expires",
    "requests_per_minute",
    "tokens_per_minute",
    "models",
)


class KeyChanges(TypedDict, total=False):
    """What may be set on a key; what is left out stays, or is without bound.

    name: a label. expires: seconds since the epoch. requests_per_minute, tokens_per_minute,
    models: limits of the key's own, below its account's.
    """

    name: str
    expires: float | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    models: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Within:
    """Which keys are meant: an account's, those that one user made, those of a role.

    Others are not there: whoever may not administer must not come by a key that does.
    """

    account_id: str | None = None
    created_by: str | None = None
    role: Role | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return what rows must meet."""
        wanted = {
            "account_id": self.account_id,
            "created_by": self.created_by,
            "role": self.role,
        }
        return [api_keys.c[name] == value for name, value in wanted.items() if value is not None]


EVERYWHERE = Within()


class ApiKeys:
    """Creates, finds and changes keys. Errors as those of Accounts."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def create(
        self,
        account: str,
        *,
        role: Role = "member",
        created_by: str | None = None,
        **values: Unpack[KeyChanges],
    ) -> tuple[ApiKey, str]:
        """Create a key for the account of that name or id.

        role: `admin` for the administrative API. created_by: the user's id who asks for it.
        Returns its record and the key itself, which cannot be shown again.
        """
        checks.check_role(role, ("member", "admin"))
        checked = self.check(values)
        record, text = self._new_key(
            name=checked.pop("name", "default"), role=role, created_by=created_by, **checked
        )
        async with self._registry.changing("key") as change:
            owner = await find_account(change.connection, account, locking=True)
            await _require_room(change.connection, owner.id, self._registry.clock())
            record = replace(record, account_id=owner.id)
            await change.insert(api_keys, record)
            await change.note(
                "key.create", record.id, owner.id, name=record.name, role=role, **checked
            )
        return record, text

    async def get(self, reference: str, within: Within = EVERYWHERE) -> ApiKey:
        """Return the key of that id; the whole key does as well."""
        async with self._registry.store.reading() as connection:
            return await _find(connection, reference, within)

    async def list(
        self,
        account: str | None = None,
        within: Within = EVERYWHERE,
        after: str | None = None,
        limit: int = MAX_PAGE,
    ) -> Page[ApiKey]:
        """Return keys, oldest first: all, or those of the account of that name or id."""
        statement = select(api_keys).where(*within.conditions())
        async with self._registry.store.reading() as connection:
            if account is not None:
                owner = await find_account(connection, account)
                statement = statement.where(api_keys.c.account_id == owner.id)
            rows = await read_page(connection, api_keys, statement, after, limit)
        return Page.of([ApiKey.from_row(row) for row in rows], limit)

    async def update(
        self, reference: str, within: Within = EVERYWHERE, **changes: Unpack[KeyChanges]
    ) -> ApiKey:
        """Change a key; return it as it is then."""
        values = self.check(changes)
        async with self._registry.changing("key") as change:
            key = await _find(change.connection, reference, within, locking=True)
            if values:
                await _set(change.connection, key.id, **values)
                await change.note("key.update", key.id, key.account_id, **values)
            return await _find(change.connection, key.id, within)

    async def revoke(self, reference: str, within: Within = EVERYWHERE) -> ApiKey:
        """Revoke a key; twice changes nothing.

        It stops working everywhere within the authenticators' cache time.
        """
        async with self._registry.changing("key") as change:
            key = await _find(change.connection, reference, within, locking=True)
            if key.revoked_at is None:
                await _set(change.connection, key.id, revoked_at=self._registry.clock())
                await change.note("key.revoke", key.id, key.account_id, name=key.name)
            return await _find(change.connection, key.id, within)

    async def rotate(
        self, reference: str, within: Within = EVERYWHERE, grace_s: float = GRACE_S
    ) -> tuple[ApiKey, str]:
        """Make a key that may do what an old one may; the old one works on for `grace_s`.

        Returns the new one as create does. Raises InvalidRequest for a key that is revoked,
        expired, or has been rotated before.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidRequest(
                f"Invalid 'grace_seconds': expected 0 to {MAX_GRACE_S:.0f}, got {grace_s:g}.",
                param="grace_seconds",
            )
        now_s = self._registry.clock()
        async with self._registry.changing("key") as change:
            old = await _find(change.connection, reference, within, locking=True)
            _require_rotatable(old, now_s)
            kept = {name: getattr(old, name) for name in _ROTATED}
            new, text = self._new_key(created=now_s, **kept)
            await change.insert(api_keys, new)
            ends = min(now_s + grace_s, old.expires or float("inf"))
            await _set(change.connection, old.id, expires=ends, replaced_by=new.id)
            await change.note("key.rotate", old.id, old.account_id, replaced_by=new.id, until=ends)
        return new, text

    def check(self, values: KeyChanges) -> dict[str, Any]:
        """Return the values as they are stored; raise InvalidRequest for one that cannot be."""
        checked: dict[str, Any] = dict(values)
        if "name" in values:
            checks.check_label(values["name"])
        if "expires" in values:
            checks.check_expiry(values["expires"], self._registry.clock())
        checks.check_count("requests_per_minute", values.get("requests_per_minute"))
        checks.check_count("tokens_per_minute", values.get("tokens_per_minute"))
        if "models" in values:
            checked["models"] = checks.check_models(values["models"], self._registry.models())
        return checked

    def _new_key(self, **values: Any) -> tuple[ApiKey, str]:
        parsed, text = keys.generate()
        peppers = self._registry.peppers
        empty = dict.fromkeys(column.name for column in api_keys.c)
        fixed = {
            "account_id": "",
            "id": parsed.key_id,
            "last_four": text[-4:],
            "mac": keys.compute_mac(parsed, peppers.current),
            "pepper_version": peppers.version,
            "created": self._registry.clock(),
        }
        return ApiKey(**{**empty, **fixed, **values}), text


async def revoke_administrators_keys(change: Change, user_id: str, now_s: float) -> None:
    """Revoke the keys of role admin that a user made, who may no longer administer."""
    theirs = (
        (api_keys.c.created_by == user_id)
        & (api_keys.c.role == "admin")
        & api_keys.c.revoked_at.is_(None)
    )
    for row in (await change.connection.execute(select(api_keys).where(theirs))).mappings():
        key = ApiKey.from_row(row)
        await _set(change.connection, key.id, revoked_at=now_s)
        await change.note("key.revoke", key.id, key.account_id, name=key.name)


async def _find(
    connection: AsyncConnection, reference: str, within: Within, *, locking: bool = False
) -> ApiKey:
    parsed = keys.parse(reference)
    key_id = parsed.key_id if parsed else reference
    statement = select(api_keys).where(api_keys.c.id == key_id, *within.conditions())
    row = None
    if is_storable(key_id):
        found = await connection.execute(statement.with_for_update() if locking else statement)
        row = found.mappings().first()
    if row is None:
        raise NotFound(f"There is no key '{keys.redact(reference) or checks.shown(reference)}'.")
    return ApiKey.from_row(row)


async def _set(connection: AsyncConnection, key_id: str, **values: Any) -> None:
    await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**values))


async def _require_room(connection: AsyncConnection, account_id: str, now_s: float) -> None:
    live = (
        select(func.count())
        .select_from(api_keys)
        .where(api_keys.c.account_id == account_id, api_keys.c.revoked_at.is_(None))
        .where(or_(api_keys.c.expires.is_(None), api_keys.c.expires > now_s))
    )
    count = int(await connection.scalar(live) or 0)
    if count >= MAX_KEYS:
        raise InvalidRequest(
            f"The account has {count} live keys; the limit is {MAX_KEYS}. Revoke some first.",
            code="too_many_keys",
        )


def _require_rotatable(key: ApiKey, now_s: float) -> None:
    problem = None
    if key.revoked_at is not None:
        problem = "has been revoked"
    elif key.replaced_by is not None:
        problem = f"has been rotated already: {key.replaced_by} replaces it"
    elif key.expires is not None and key.expires <= now_s:
        problem = "has expired"
    if problem:
        raise InvalidRequest(f"The key '{key.name}' {problem}.", code="key_not_rotatable")
