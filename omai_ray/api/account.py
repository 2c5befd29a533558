"""/v1/account/*: what the caller's own account is, may use and has used; its keys and sessions.

A key may read; it manages nothing, so that one that leaked cannot make others. Members manage the
keys that they made, owners and administrators all keys of their account.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api import openapi
from omai_ray.api.accounting import principal_of
from omai_ray.api.auth import CookieJar
from omai_ray.api.records import (
    key_changes,
    key_list,
    new_key,
    read_rotation,
    session_list,
    usage_of,
)
from omai_ray.api.render import ObjectResponse
from omai_ray.api.schemas import administration as schemas
from omai_ray.api.validation import read_body, read_query
from omai_ray.errors import PermissionDenied
from omai_ray.identity import checks
from omai_ray.identity.administration import Administration
from omai_ray.identity.api_keys import Within
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.middleware import source_of
from omai_ray.identity.principal import Principal
from omai_ray.ledger import UsageLedger
from omai_ray.ledger.ledger import month_of
from omai_ray.quota.tiers import limits_of
from omai_ray.settings import Tier


class AccountRoutes:
    """Answers about the caller's own account. clock: seconds since the epoch."""

    def __init__(
        self,
        administration: Administration,
        authenticator: Authenticator,
        ledger: UsageLedger,
        tiers: Mapping[str, Tier],
        cookies: CookieJar,
        clock: Callable[[], float],
    ) -> None:
        self._administration = administration
        self._authenticator = authenticator
        self._ledger = ledger
        self._tiers = tiers
        self._cookies = cookies
        self._clock = clock

    async def retrieve(self, request: Request) -> Response:
        """Answer GET /v1/account."""
        account = await self._administration.accounts.get(principal_of(request).account_id)
        limits = limits_of(account.tier, self._tiers)
        month = month_of(self._clock())
        return ObjectResponse(
            schemas.OwnAccountObject(
                **schemas.AccountObject.of(account).model_dump(),
                requests_per_minute=limits.requests_per_minute,
                tokens_per_minute=limits.tokens_per_minute,
                tokens_this_month=await self._ledger.tokens_in_month(account.id, month),
            )
        )

    async def usage(self, request: Request) -> Response:
        """Answer GET /v1/usage and GET /v1/account/usage."""
        query = read_query(request, schemas.UsageQuery)
        account_id = principal_of(request).account_id
        return ObjectResponse(await usage_of(self._ledger, account_id, query))

    async def list_keys(self, request: Request) -> Response:
        """Answer GET /v1/account/keys."""
        principal, query = _user(request), read_query(request, schemas.ListQuery)
        within = _keys_of(principal)
        page = await self._administration.keys.list(
            within=within, after=query.after, limit=query.limit
        )
        return key_list(page)

    async def create_key(self, request: Request) -> Response:
        """Answer POST /v1/account/keys."""
        principal, body = _user(request), await read_body(request, schemas.KeyFields)
        made = await self._acting(request).keys.create(
            principal.account_id, created_by=principal.user_id, **key_changes(body)
        )
        return new_key(*made)

    async def retrieve_key(self, request: Request) -> Response:
        """Answer GET /v1/account/keys/{key}."""
        within = _keys_of(_user(request))
        key = await self._administration.keys.get(request.path_params["key"], within)
        return ObjectResponse(schemas.KeyObject.of(key))

    async def update_key(self, request: Request) -> Response:
        """Answer POST /v1/account/keys/{key}."""
        within, body = _keys_of(_user(request)), await read_body(request, schemas.KeyFields)
        key = await self._acting(request).keys.update(
            request.path_params["key"], within, **key_changes(body)
        )
        self._authenticator.forget_key(key.id)
        return ObjectResponse(schemas.KeyObject.of(key))

    async def revoke_key(self, request: Request) -> Response:
        """Answer DELETE /v1/account/keys/{key}."""
        within = _keys_of(_user(request))
        key = await self._acting(request).keys.revoke(request.path_params["key"], within)
        self._authenticator.forget_key(key.id)
        return ObjectResponse(schemas.KeyObject.of(key))

    async def rotate_key(self, request: Request) -> Response:
        """Answer POST /v1/account/keys/{key}/rotate."""
        within, body = _keys_of(_user(request)), await read_rotation(request)
        reference = request.path_params["key"]
        made = await self._acting(request).keys.rotate(reference, within, body.grace_seconds)
        self._authenticator.forget_key(reference)
        return new_key(*made)

    async def list_sessions(self, request: Request) -> Response:
        """Answer GET /v1/account/sessions."""
        principal = _user(request)
        sessions = await self._authenticator.sessions.list(_user_id(principal))
        return session_list(sessions, principal.session_id)

    async def end_session(self, request: Request) -> Response:
        """Answer DELETE /v1/account/sessions/{session}."""
        principal = _user(request)
        session_id = request.path_params["session"]
        actor = principal.actor(source_of(request.scope))
        await self._authenticator.revoke_session(session_id, _user_id(principal), actor)
        return ObjectResponse(schemas.Deleted(object="session.deleted", id=session_id))

    async def end_other_sessions(self, request: Request) -> Response:
        """Answer DELETE /v1/account/sessions: all but the one that the request came by."""
        principal = _user(request)
        ended = await self._authenticator.revoke_sessions(
            _user_id(principal), principal.actor(source_of(request.scope)), principal.session_id
        )
        return ObjectResponse(schemas.Ended(count=ended))

    async def change_password(self, request: Request) -> Response:
        """Answer POST /v1/account/password: every session ends; the caller's begins anew."""
        principal, body = _user(request), await read_body(request, schemas.ChangePassword)
        checks.check_password(body.new_password, "new_password")
        name, source = principal.user_name or "", source_of(request.scope)
        entry = await self._authenticator.verify_password(name, body.current_password, source)
        user = await self._acting(request).users.update(
            entry.user.id, verified=entry.user.password_hash, password=body.new_password
        )
        self._authenticator.forget_user(name)
        response = ObjectResponse(schemas.UserObject.of(user))
        if principal.session_id is not None:
            agent = request.headers.get("user-agent")
            _, value = await self._authenticator.sessions.create(user, source, user_agent=agent)
            self._cookies.put(response, request.scope, value)
        return response

    def _acting(self, request: Request) -> Administration:
        actor = principal_of(request).actor(source_of(request.scope))
        return self._administration.acting(actor)


def _user(request: Request) -> Principal:
    """Return the caller, who must be a user. Raises PermissionDenied."""
    principal = principal_of(request)
    if principal.user_id is None:
        raise PermissionDenied(
            "An API key cannot do this: log in with a username and password.", code="user_required"
        )
    return principal


def _user_id(principal: Principal) -> str:
    return principal.user_id or ""


def _keys_of(principal: Principal) -> Within:
    created_by = principal.user_id if principal.role == "member" else None
    return Within(principal.account_id, created_by, None if principal.role == "admin" else "member")


def add_account_routes(app: FastAPI, routes: AccountRoutes) -> None:
    """Add all of them to the application."""
    add = partial(openapi.add_route, app, tag="Account")
    key, new = schemas.KeyObject, schemas.NewKeyObject
    root = "/v1/account"
    add("GET", root, routes.retrieve, schemas.OwnAccountObject,
        summary="Retrieve your account")  # fmt: skip
    for path in ("/v1/usage", f"{root}/usage"):
        add("GET", path, routes.usage, schemas.UsageList,
            summary="Sum up your usage", query=schemas.UsageQuery)  # fmt: skip
    add("GET", f"{root}/keys", routes.list_keys, schemas.KeyList,
        summary="List your API keys", query=schemas.ListQuery)  # fmt: skip
    add("POST", f"{root}/keys", routes.create_key, new,
        summary="Create an API key of yours", body=schemas.KeyFields)  # fmt: skip
    add("GET", f"{root}/keys/{{key}}", routes.retrieve_key, key,
        summary="Retrieve an API key of yours")  # fmt: skip
    add("POST", f"{root}/keys/{{key}}", routes.update_key, key,
        summary="Change an API key of yours", body=schemas.KeyFields)  # fmt: skip
    add("DELETE", f"{root}/keys/{{key}}", routes.revoke_key, key,
        summary="Revoke an API key of yours")  # fmt: skip
    add("POST", f"{root}/keys/{{key}}/rotate", routes.rotate_key, new,
        summary="Replace an API key of yours", body=schemas.RotateKey,
        body_required=False)  # fmt: skip
    add("GET", f"{root}/sessions", routes.list_sessions, schemas.SessionList,
        summary="List your sessions")  # fmt: skip
    add("DELETE", f"{root}/sessions/{{session}}", routes.end_session, schemas.Deleted,
        summary="End a session of yours")  # fmt: skip
    add("DELETE", f"{root}/sessions", routes.end_other_sessions, schemas.Ended,
        summary="End your other sessions")  # fmt: skip
    add("POST", f"{root}/password", routes.change_password, schemas.UserObject,
        summary="Change your password", body=schemas.ChangePassword)  # fmt: skip
