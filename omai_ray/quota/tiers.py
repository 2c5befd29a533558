"""What an account's tier allows."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from omai_ray.errors import PermissionDenied
from omai_ray.quota.protocol import Limits
from omai_ray.settings import Tier

_log = logging.getLogger(__name__)


def limits_of(tier: str, tiers: Mapping[str, Tier]) -> Limits:
    """Return a tier's limits; raise PermissionDenied for one that is not configured."""
    found = tier_of(tier, tiers)
    return Limits(found.requests_per_minute, found.tokens_per_minute, found.concurrent_requests)


def tier_of(tier: str, tiers: Mapping[str, Tier]) -> Tier:
    """Return the tier of that name; raise PermissionDenied for one that is not configured.

    An account must not become unlimited, nor limited at random, because its tier was removed.
    """
    found = tiers.get(tier)
    if found is None:
        _log.error("tier %r is not configured (there are: %s)", tier, ", ".join(tiers))
        raise PermissionDenied(
            f"The account's tier '{tier}' is not configured. Please contact the administrator, who "
            "can add it to `tiers` or give the account another."
        )
    return found
