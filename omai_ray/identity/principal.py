"""The caller of a request, once known."""

from __future__ import annotations

from dataclasses import dataclass

from omai_ray.store import Account, ApiKey, Role, Session, User


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever makes a request, and for which account.

    key_id: where a key was used. user_id: where a password or a session was.
    session_id: the session's hashed id, where the browser's cookie decided.
    role: the user's; a key is a `member` of its account.
    """

    account_id: str
    account_name: str
    tier: str
    key_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    role: Role = "member"

    @classmethod
    def of_key(cls, account: Account, key: ApiKey) -> Principal:
        """Return the principal of a key."""
        return cls(account.id, account.name, account.tier, key_id=key.id)

    @classmethod
    def of_user(cls, account: Account, user: User, session: Session | None = None) -> Principal:
        """Return the principal of a user, with the session they use if any."""
        return cls(
            account.id,
            account.name,
            account.tier,
            user_id=user.id,
            session_id=session.id if session else None,
            role=user.role,
        )
