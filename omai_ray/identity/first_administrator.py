"""Somebody must be able to administer a new installation: the first start makes them."""

from __future__ import annotations

import asyncio
import logging

from omai_ray.errors import InvalidRequest
from omai_ray.identity import checks
from omai_ray.identity.administration import Administration
from omai_ray.identity.keys import random_text
from omai_ray.identity.registry import Registry
from omai_ray.settings import Settings

NAME = "admin"
_log = logging.getLogger(__name__)
_PASSWORD_LENGTH = 20


def make_first_administrator(settings: Settings) -> str | None:
    """Make the user `admin` where there is no administrator. Blocking.

    Returns the password where one was made up, which is stored nowhere; None where the settings
    gave it or nobody was made. Raises ConfigError, InvalidRequest (a password that cannot be).
    """
    return asyncio.run(_make(settings))


async def _make(settings: Settings) -> str | None:
    registry = await Registry.open(settings)
    try:
        users = Administration(registry).users
        if await users.has_administrator():
            return None
        given = settings.admin_password
        password = given.get_secret_value() if given else random_text(_PASSWORD_LENGTH)
        checks.check_password(password, "admin_password")
        tier = "enterprise" if "enterprise" in settings.tiers else list(settings.tiers)[-1]
        for place in ({"tier": tier}, {"account": NAME}):  # an account of that name may be there
            try:
                await users.create(NAME, password, role="admin", **place)
            except InvalidRequest as error:
                if error.code != "already_exists":
                    raise
                if await users.has_administrator():
                    return None  # another start was first
            else:
                return None if given else password
        _log.warning("the user '%s' is there and no administrator: make one by command", NAME)
        return None
    finally:
        await registry.close()
