"""Everything that the command line and the administrative API change, as one object."""

from __future__ import annotations

from dataclasses import replace

from omai_ray.identity.accounts import Accounts
from omai_ray.identity.actor import Actor
from omai_ray.identity.api_keys import ApiKeys
from omai_ray.identity.registry import Registry
from omai_ray.identity.users import Users


class Administration:
    """Accounts, users and keys of one registry; what is done is audited as its actor's doing."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.accounts = Accounts(registry)
        self.users = Users(registry)
        self.keys = ApiKeys(registry)
        self.audit = registry.audit

    def acting(self, actor: Actor) -> Administration:
        """Return the same for somebody else."""
        return Administration(replace(self._registry, actor=actor))
