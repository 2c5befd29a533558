"""Accounts, users, keys, sessions, usage and the audit log, as they travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from omai_ray.api.schemas.common import RequestBody
from omai_ray.identity.api_keys import MAX_GRACE_S
from omai_ray.identity.checks import MAX_COUNT, MAX_MODELS, MAX_PASSWORD
from omai_ray.ledger import UsageRow
from omai_ray.store import Account, ApiKey, AuditEntry, Session, User

MAX_LIMIT = 100
Name = Annotated[str, Field(min_length=1, max_length=64)]
Password = Annotated[str, Field(min_length=1, max_length=MAX_PASSWORD, repr=False)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Models = Annotated[list[str], Field(min_length=1, max_length=MAX_MODELS)]
Seconds = Annotated[int, Field(ge=0, le=10**11)]


class CreateAccount(RequestBody):
    """A new account; one without a name is called by its id."""

    name: Name | None = None
    tier: str
    monthly_tokens: Count | None = None
    models: Models | None = None


class UpdateAccount(RequestBody):
    """What is to change; a null takes a bound away."""

    name: Name = ""
    tier: str = ""
    status: Literal["active", "suspended"] = "active"
    monthly_tokens: Count | None = None
    models: Models | None = None


class CreateUser(RequestBody):
    """A new user, of an existing account or, with a tier, of one of their own."""

    name: Name
    password: Password
    account: str | None = None
    tier: str | None = None
    role: Literal["owner", "member", "admin"] | None = None


class UpdateUser(RequestBody):
    """What is to change; a new password ends the user's sessions."""

    role: Literal["owner", "member", "admin"] = "member"
    password: Password = ""


class KeyFields(RequestBody):
    """What may be set on a key; limits are its own, below its account's. null: no bound."""

    name: Name = "default"
    expires_at: Seconds | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    models: Models | None = None


class CreateKey(KeyFields):
    """A new key of an account, by its name or id. admin: for the administrative API."""

    account: str
    role: Literal["member", "admin"] = "member"


class RotateKey(RequestBody):
    """For how long the old key goes on to work."""

    grace_seconds: Annotated[int, Field(ge=0, le=MAX_GRACE_S)] = 24 * 3600


class ChangePassword(RequestBody):
    """A user's own change of their password."""

    current_password: Password
    new_password: Password


class Query(BaseModel):
    """A URL's query; an unknown name is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Query):
    """No query is taken."""


class ListQuery(Query):
    """A page. after: the id of the last entry seen."""

    after: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 20


class AccountListQuery(ListQuery):
    """A page of one account's entries, or of all."""

    account: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class AuditQuery(AccountListQuery):
    """A page of the audit log."""

    actor: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    action: Annotated[str, Field(min_length=1, max_length=40)] | None = None
    target: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class UsageQuery(Query):
    """A span of time, in whole hours; seconds since the epoch. group_by: with commas between."""

    start_time: Seconds = 0
    end_time: Seconds | None = None
    bucket_width: Literal["1h", "1d"] | None = None
    group_by: Annotated[str, Field(pattern=r"^(model|key)(,(model|key))?$")] = "model"


class AdminUsageQuery(UsageQuery):
    """A span of time of one account, or of all."""

    group_by: Annotated[str, Field(pattern=r"^(account|model|key)(,(account|model|key)){0,2}$")] = (
        "model"
    )
    account: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class AccountObject(BaseModel):
    """An account."""

    object: Literal["account"] = "account"
    id: str
    name: str
    tier: str
    status: Literal["active", "suspended"]
    monthly_tokens: int | None
    models: tuple[str, ...] | None
    created_at: int

    @classmethod
    def of(cls, account: Account) -> AccountObject:
        """Return an account as it travels."""
        return cls(**_shared(account, cls), created_at=int(account.created))


class OwnAccountObject(AccountObject):
    """The caller's account. tokens_this_month: what it has used since the month began, UTC."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_this_month: int


class UserObject(BaseModel):
    """A user."""

    object: Literal["user"] = "user"
    id: str
    name: str
    account_id: str
    role: Literal["owner", "member", "admin"]
    created_at: int

    @classmethod
    def of(cls, user: User) -> UserObject:
        """Return a user as they travel: without their password's hash."""
        return cls(**_shared(user, cls), created_at=int(user.created))


class KeyObject(BaseModel):
    """An API key, without its secret."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    account_id: str
    role: Literal["owner", "member", "admin"]
    redacted_value: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    models: tuple[str, ...] | None
    created_at: int
    created_by: str | None
    last_used_at: int | None
    expires_at: int | None
    revoked_at: int | None
    replaced_by: str | None

    @classmethod
    def of(cls, key: ApiKey) -> KeyObject:
        """Return a key as it travels."""
        return cls(**_key_fields(key))


class NewKeyObject(KeyObject):
    """A key that was just made. value: the key itself, which cannot be shown again."""

    value: str

    @classmethod
    def made(cls, key: ApiKey, value: str) -> NewKeyObject:
        """Return a new key with its value."""
        return cls(**_key_fields(key), value=value)


class SessionObject(BaseModel):
    """A login. current: the one that the request came by."""

    object: Literal["session"] = "session"
    id: str
    user_id: str
    created_at: int
    last_used_at: int
    expires_at: int
    source: str | None
    user_agent: str | None
    current: bool

    @classmethod
    def of(cls, session: Session, current_id: str | None) -> SessionObject:
        """Return a session as it travels: its id is a hash, and opens nothing."""
        return cls(
            **_shared(session, cls, "expires_at"),
            created_at=int(session.created),
            last_used_at=int(session.last_seen),
            expires_at=int(session.expires),
            current=session.id == current_id,
        )


class AuditObject(BaseModel):
    """Something that was done, or tried."""

    object: Literal["audit_entry"] = "audit_entry"
    id: str
    created_at: int
    actor: str
    actor_name: str | None
    action: str
    target: str | None
    account_id: str | None
    outcome: Literal["success", "failure", "denied"]
    request_id: str | None
    source: str | None
    details: dict[str, Any] | None

    @classmethod
    def of(cls, entry: AuditEntry) -> AuditObject:
        """Return an entry as it travels."""
        shared = {**_shared(entry, cls), "id": str(entry.id)}
        return cls(**shared, created_at=int(entry.at))


class UsageObject(BaseModel):
    """What was used; null is what it is not grouped by, or a key where there was none."""

    object: Literal["usage"] = "usage"
    start_time: int | None
    account_id: str | None
    model: str | None
    key_id: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int
    cost: float

    @classmethod
    def of(cls, row: UsageRow) -> UsageObject:
        """Return a report's row as it travels."""
        totals = row.totals
        return cls(
            start_time=row.start,
            account_id=row.account_id,
            model=row.model,
            key_id=row.key_id,
            cost=round(totals.cost, 9),
            requests=totals.requests,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            cached_tokens=totals.cached_tokens,
            total_tokens=totals.prompt_tokens + totals.completion_tokens,
        )


class _List(BaseModel):
    """A page, as OpenAI's lists are."""

    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class AccountList(_List):
    """Accounts, oldest first."""

    data: list[AccountObject]


class UserList(_List):
    """Users, oldest first."""

    data: list[UserObject]


class KeyList(_List):
    """Keys, oldest first."""

    data: list[KeyObject]


class SessionList(_List):
    """A user's live sessions, the latest first."""

    data: list[SessionObject]


class AuditList(_List):
    """Audit entries, newest first."""

    data: list[AuditObject]


class UsageList(BaseModel):
    """Usage, in the order of time, account, model and key."""

    object: Literal["list"] = "list"
    data: list[UsageObject]


class Deleted(BaseModel):
    """What is gone."""

    object: str
    id: str
    deleted: Literal[True] = True


class Ended(BaseModel):
    """How many sessions were ended."""

    object: Literal["sessions.ended"] = "sessions.ended"
    count: int


def _shared(record: Any, model: type[BaseModel], *but: str) -> dict[str, Any]:
    """Return what a record and a model have under the same names."""
    return {
        name: getattr(record, name)
        for name in model.model_fields
        if hasattr(record, name) and name not in but
    }


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        **_shared(key, KeyObject),
        "redacted_value": f"omai-sk-{key.id}_...{key.last_four}",
        "created_at": int(key.created),
        "last_used_at": _whole(key.last_used),
        "expires_at": _whole(key.expires),
        "revoked_at": _whole(key.revoked_at),
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
