"""One admitted request's account: its reservation settled and its usage recorded, exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter, time
from typing import TypeVar

from starlette.requests import Request

from omai_ray.api.backends import ServedModel
from omai_ray.api.context import CLIENT_CLOSED_REQUEST, RequestContext, context_of
from omai_ray.api.measures import Measures
from omai_ray.catalog import ModelSpec
from omai_ray.errors import OMAiError
from omai_ray.identity.principal import Principal
from omai_ray.ledger.ledger import UsageLedger, UsageRecord
from omai_ray.quota.gate import Gate, Permit

Model = TypeVar("Model", bound=ServedModel)


def principal_of(request: Request) -> Principal:
    """Return who is calling, as the identity middleware found."""
    principal: Principal = request.scope["state"]["principal"]
    return principal


def own_of(request: Request, parameter: str) -> tuple[str, str]:
    """Return the caller's account, and what the path names by a parameter."""
    return principal_of(request).account_id, request.path_params[parameter]


def permitted(request: Request, name: str, served: Model) -> Model:
    """Return the model that a request calls `name`. Raises PermissionDenied where it may not."""
    principal_of(request).require_model(name, served.spec.name)
    return served


@dataclass(frozen=True)
class Accountant:
    """Admits requests through the gate and writes what they used to the ledger."""

    gate: Gate
    ledger: UsageLedger
    measures: Measures

    async def admit(self, request: Request, spec: ModelSpec, *, reserved_tokens: int) -> Meter:
        """Return the request's open account, or raise RateLimited.

        reserved_tokens: what the request is expected to use, prompt included. The rate-limit
        headers are on the response from here on, whatever becomes of it.
        """
        context = context_of(request.scope)
        principal = principal_of(request)
        context.facts |= {"model": spec.name, "account": principal.account_id}
        try:
            permit = await self.gate.admit(principal, spec.name, reserved_tokens, context.usage_id)
        except OMAiError as error:
            self.measures.refused(spec.name, principal.tier, error)
            raise
        context.headers |= permit.headers
        return Meter(self, permit, context, principal, spec, request.scope["path"], reserved_tokens)


class Meter:
    """Counts one request's tokens until it is closed."""

    def __init__(
        self,
        accountant: Accountant,
        permit: Permit,
        context: RequestContext,
        principal: Principal,
        spec: ModelSpec,
        endpoint: str,
        reserved_tokens: int,
    ) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: str | None = None
        self._accountant = accountant
        self._reserved_tokens = reserved_tokens
        self._permit = permit
        self._context = context
        self._principal = principal
        self._spec = spec
        self._endpoint = endpoint
        self._started = time()
        self._started_s = perf_counter()
        self._first_token_s: float | None = None
        self._closing: asyncio.Task[None] | None = None

    def note_first_token(self, age_s: float = 0.0) -> None:
        """Say that there is something of the answer, since age_s; the earliest counts."""
        came_s = perf_counter() - age_s
        if self._first_token_s is None or came_s < self._first_token_s:
            self._first_token_s = came_s

    @property
    def total_tokens(self) -> int:
        """Tokens read and written so far."""
        return self.prompt_tokens + self.completion_tokens

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Close, at the end of what runs within, with the status that it ended with."""
        status = CLIENT_CLOSED_REQUEST
        try:
            yield
            status = 200
        except Exception as error:
            status = status_of(error)
            raise
        finally:
            await self.close(status)

    async def close(self, status: int) -> None:
        """Settle and record; return once the record is durable.

        The first call decides; a caller's cancellation does not stop it.
        """
        if self._closing is None:
            self._context.charged = status == 200
            self._closing = asyncio.create_task(self._close(status))
        await asyncio.shield(self._closing)

    async def _close(self, status: int) -> None:
        if self._context.batch_id is not None and status != 200:
            # It may be tried again, and whatever counts, counts once: what fails costs nothing.
            await self._permit.settle(0)
            return
        self._context.facts |= {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        used = self.total_tokens
        self._permit.begin_settling(used)  # while the record is written
        record = self._record(status)
        measures = self._accountant.measures
        measures.ended(record, self._principal.tier, self._reserved_tokens)
        try:
            await self._accountant.ledger.record(record)
            self._context.usage = record
        finally:
            self._permit.recorded()
            await self._permit.settle(used)

    def _record(self, status: int) -> UsageRecord:
        price, first_s = self._spec.price, self._first_token_s
        batch_id = self._context.batch_id
        counts = (self.prompt_tokens, self.completion_tokens, self.cached_tokens)
        return UsageRecord(
            request_id=self._context.recorded_as or self._context.usage_id,
            account_id=self._principal.account_id,
            key_id=self._principal.key_id,
            model=self._spec.name,
            endpoint=self._endpoint,
            status=status,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            started_at=self._started,
            duration_ms=round((perf_counter() - self._started_s) * 1000),
            first_token_ms=None if first_s is None else round((first_s - self._started_s) * 1000),
            finish_reason=self.finish_reason,
            cost=None if price is None else price.of(*counts, in_batch=batch_id is not None),
            batch_id=batch_id,
        )


def status_of(error: BaseException) -> int:
    """Return the status that an exception ends a request with."""
    if isinstance(error, OMAiError):
        return error.status
    return CLIENT_CLOSED_REQUEST if isinstance(error, asyncio.CancelledError) else 500
