"""The caller of a request, once known."""

from __future__ import annotations

from dataclasses import dataclass

from omai_ray.errors import PermissionDenied
from omai_ray.identity.actor import Actor
from omai_ray.store import Account, ApiKey, Role, Session, User


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever makes a request, and for which account.

    monthly_tokens: the account's budget. models: lists of names, each of which must allow what is
    used. key_id: where a key was used; requests_per_minute, tokens_per_minute: its own limits.
    user_id, user_name: where a password or a session was. session_id: the session's hashed id,
    where the browser's cookie decided. role: the user's, or the key's.
    """

    account_id: str
    account_name: str
    tier: str
    monthly_tokens: int | None = None
    models: tuple[frozenset[str], ...] = ()
    key_id: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    user_id: str | None = None
    user_name: str | None = None
    session_id: str | None = None
    role: Role = "member"

    @classmethod
    def of_key(cls, account: Account, key: ApiKey) -> Principal:
        """Return the principal of a key: what it may use is what both it and its account may."""
        lists = [names for names in (account.models, key.models) if names is not None]
        return cls(
            account.id,
            account.name,
            account.tier,
            monthly_tokens=account.monthly_tokens,
            models=tuple(map(frozenset, lists)),
            key_id=key.id,
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            role=key.role,
        )

    @classmethod
    def of_owner(cls, account: Account, key: ApiKey | None) -> Principal:
        """Return who owns work that is done later: no minute's limit holds for it."""
        lists = [of.models for of in (account, key) if of is not None and of.models is not None]
        return cls(
            account.id,
            account.name,
            account.tier,
            monthly_tokens=account.monthly_tokens,
            models=tuple(map(frozenset, lists)),
            key_id=key.id if key is not None else None,
        )

    @classmethod
    def of_user(cls, account: Account, user: User, session: Session | None = None) -> Principal:
        """Return the principal of a user, with the session they use if any."""
        return cls(
            account.id,
            account.name,
            account.tier,
            monthly_tokens=account.monthly_tokens,
            models=() if account.models is None else (frozenset(account.models),),
            user_id=user.id,
            user_name=user.name,
            session_id=session.id if session else None,
            role=user.role,
        )

    def actor(self, source: str | None) -> Actor:
        """Return them as the audit log names them."""
        return Actor(self.user_id or self.key_id or "anonymous", self.user_name, source)

    def may_use(self, *names: str) -> bool:
        """Whether a model that goes by these names is allowed, under any of them."""
        return all(not allowed.isdisjoint(names) for allowed in self.models)

    def require_model(self, *names: str) -> None:
        """Raise PermissionDenied for a model, first name as requested, that may not be used."""
        if not self.may_use(*names):
            raise PermissionDenied(
                f"You are not allowed to use the model '{names[0]}'.",
                param="model",
                code="model_not_allowed",
            )


def require_active(account: Account) -> None:
    """Raise PermissionDenied for an account that is suspended."""
    if account.status != "active":
        raise PermissionDenied(f"The account '{account.name}' is suspended.")
