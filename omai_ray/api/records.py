"""What the administrative and the self-service routes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.render import ObjectResponse
from omai_ray.api.schemas import administration as schemas
from omai_ray.api.validation import read_optional_body
from omai_ray.errors import InvalidRequest
from omai_ray.identity.api_keys import KeyChanges
from omai_ray.identity.paging import Page
from omai_ray.ledger import Grouping, UsageLedger
from omai_ray.store import ApiKey, Session

_GROUPINGS: tuple[Grouping, ...] = ("account", "model", "key")


class Frame(TypedDict):
    """What a list says beside its entries."""

    first_id: str | None
    last_id: str | None
    has_more: bool


def frame(ids: Sequence[str], has_more: bool) -> Frame:
    """Return what a list of these entries says beside them."""
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"first_id": first, "last_id": last, "has_more": has_more}


def key_list(page: Page[ApiKey]) -> Response:
    """Return the answer that lists keys."""
    data = [schemas.KeyObject.of(key) for key in page.items]
    ids = [key.id for key in page.items]
    return ObjectResponse(schemas.KeyList(data=data, **frame(ids, page.has_more)))


def session_list(sessions: list[Session], current_id: str | None) -> Response:
    """Return the answer that lists sessions, the caller's own marked."""
    data = [schemas.SessionObject.of(session, current_id) for session in sessions]
    ids = [session.id for session in sessions]
    return ObjectResponse(schemas.SessionList(data=data, **frame(ids, False)))


def new_key(key: ApiKey, value: str) -> Response:
    """Return the one answer that has a key's value."""
    return ObjectResponse(schemas.NewKeyObject.made(key, value))


def key_changes(body: schemas.KeyFields) -> KeyChanges:
    """Return what a body sets on a key; what it leaves out stays."""
    sent = body.model_fields_set
    changes: KeyChanges = {}
    if "name" in sent:
        changes["name"] = body.name
    if "expires_at" in sent:
        changes["expires"] = body.expires_at
    if "requests_per_minute" in sent:
        changes["requests_per_minute"] = body.requests_per_minute
    if "tokens_per_minute" in sent:
        changes["tokens_per_minute"] = body.tokens_per_minute
    if "models" in sent:
        changes["models"] = body.models
    return changes


async def read_rotation(request: Request) -> schemas.RotateKey:
    """Return the body of a rotation, which may be empty."""
    return await read_optional_body(request, schemas.RotateKey) or schemas.RotateKey()


async def usage_of(
    ledger: UsageLedger, account_id: str | None, query: schemas.UsageQuery
) -> schemas.UsageList:
    """Return what an account, or all, used within a span of time, as the query groups it."""
    if query.end_time is not None and query.end_time <= query.start_time:
        raise InvalidRequest(
            f"Invalid 'end_time': it must be later than 'start_time' ({query.start_time}), got "
            f"{query.end_time}.",
            param="end_time",
        )
    by = {group for group in _GROUPINGS if group in query.group_by.split(",")}
    if query.bucket_width is not None:
        by.add("hour" if query.bucket_width == "1h" else "day")
    rows = await ledger.report(account_id, query.start_time, query.end_time, by)
    return schemas.UsageList(data=[schemas.UsageObject.of(row) for row in rows])
