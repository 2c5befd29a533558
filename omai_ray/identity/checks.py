"""What the values of accounts, users and keys must be. Every check raises InvalidRequest."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import get_args

from omai_ray.errors import InvalidRequest
from omai_ray.store import AccountStatus, Role, is_storable

NAME_RULE = (
    "1 to 64 letters, digits or . _ @ + -, beginning with a letter or digit (and with neither "
    "'acct_' nor 'user_')"
)
MIN_PASSWORD = 8
MAX_PASSWORD = 1024
MAX_COUNT = 10**15
MAX_MODELS = 1000
MAX_LIFE_S = 100 * 365.25 * 86_400
_NAME = re.compile(r"(?!acct_|user_)[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)


def shown(reference: str) -> str:
    """Return what a client sent, short and plain enough for a message."""
    return reference if len(reference) <= 80 and reference.isprintable() else "..."


def check_name(name: str) -> str:
    """Return the name of an account or user."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"Invalid 'name': expected {NAME_RULE}, got '{shown(name)}'.", param="name"
        )
    return name


def check_label(label: str) -> str:
    """Return the name of a key, which may be any text of one line."""
    if not 1 <= len(label) <= 64 or not label.isprintable():
        raise InvalidRequest("Invalid 'name': expected 1 to 64 printable characters.", param="name")
    return label


def check_password(password: str, field: str = "password") -> str:
    """Return a password that may be used."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise InvalidRequest(
            f"Invalid '{field}': expected {MIN_PASSWORD} to {MAX_PASSWORD} characters, "
            f"got {len(password)}.",
            param=field,
        )
    if not is_storable(password):
        raise InvalidRequest(f"Invalid '{field}': it is no text in UTF-8.", param=field)
    return password


def check_role(role: str, allowed: Collection[str] = get_args(Role)) -> None:
    """Refuse a role that is not among the allowed ones."""
    if role not in allowed:
        raise InvalidRequest(
            f"Invalid 'role': expected one of {', '.join(allowed)}, got '{role}'.", param="role"
        )


def check_status(status: str) -> None:
    """Refuse what is no account's status."""
    if status not in get_args(AccountStatus):
        raise InvalidRequest(
            f"Invalid 'status': expected 'active' or 'suspended', got '{status}'.", param="status"
        )


def check_tier(tier: str, tiers: Collection[str]) -> None:
    """Refuse a tier that is not configured."""
    if tier not in tiers:
        raise InvalidRequest(
            f"Invalid 'tier': there is no tier '{tier}' (there are: {', '.join(tiers)}).",
            param="tier",
        )


def check_count(field: str, value: int | None) -> int | None:
    """Return a number of requests or tokens, None without bound."""
    if value is not None and not 1 <= value <= MAX_COUNT:
        raise InvalidRequest(
            f"Invalid '{field}': expected 1 to {MAX_COUNT}, got {value}.", param=field
        )
    return value


def check_models(models: Collection[str] | None, served: Collection[str]) -> tuple[str, ...] | None:
    """Return an allow-list of names that are served, None for all models."""
    if models is None:
        return None
    if not 1 <= len(models) <= MAX_MODELS:
        raise InvalidRequest(
            f"Invalid 'models': expected 1 to {MAX_MODELS} names, got {len(models)}.",
            param="models",
        )
    for name in models:
        if name not in served:
            raise InvalidRequest(
                f"Invalid 'models': no model '{name}' is served (served: {', '.join(served)}).",
                param="models",
            )
    return tuple(dict.fromkeys(models))


def check_expiry(expires: float | None, now_s: float) -> float | None:
    """Return an expiry in seconds since the epoch, None for never."""
    if expires is not None and not now_s < expires <= now_s + MAX_LIFE_S:
        raise InvalidRequest(
            "Invalid 'expires_at': it must lie in the future, at most 100 years ahead.",
            param="expires_at",
        )
    return expires
