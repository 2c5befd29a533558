"""/v1/admin/*: accounts, users, keys, usage and the audit log, for administrators alone."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api import openapi
from omai_ray.api.accounting import principal_of
from omai_ray.api.records import (
    frame,
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
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.middleware import source_of
from omai_ray.ledger import UsageLedger


class AdminRoutes:
    """Answers administrators; anybody else is refused, and the refusal is in the audit log."""

    def __init__(
        self, administration: Administration, authenticator: Authenticator, ledger: UsageLedger
    ) -> None:
        self._administration = administration
        self._authenticator = authenticator
        self._ledger = ledger

    async def list_accounts(self, request: Request) -> Response:
        """Answer GET /v1/admin/accounts."""
        admin, query = self._admin(request), read_query(request, schemas.ListQuery)
        page = await admin.accounts.list(query.after, query.limit)
        data = [schemas.AccountObject.of(account) for account in page.items]
        ids = [account.id for account in page.items]
        return ObjectResponse(schemas.AccountList(data=data, **frame(ids, page.has_more)))

    async def create_account(self, request: Request) -> Response:
        """Answer POST /v1/admin/accounts."""
        admin, body = self._admin(request), await read_body(request, schemas.CreateAccount)
        account = await admin.accounts.create(**body.model_dump())
        return ObjectResponse(schemas.AccountObject.of(account))

    async def retrieve_account(self, request: Request) -> Response:
        """Answer GET /v1/admin/accounts/{account}."""
        account = await self._admin(request).accounts.get(request.path_params["account"])
        return ObjectResponse(schemas.AccountObject.of(account))

    async def update_account(self, request: Request) -> Response:
        """Answer POST /v1/admin/accounts/{account}."""
        admin, body = self._admin(request), await read_body(request, schemas.UpdateAccount)
        changes = body.model_dump(exclude_unset=True)
        account = await admin.accounts.update(request.path_params["account"], **changes)
        self._authenticator.forget_all()
        return ObjectResponse(schemas.AccountObject.of(account))

    async def list_users(self, request: Request) -> Response:
        """Answer GET /v1/admin/users."""
        admin, query = self._admin(request), read_query(request, schemas.AccountListQuery)
        page = await admin.users.list(query.account, query.after, query.limit)
        data = [schemas.UserObject.of(user) for user in page.items]
        ids = [user.id for user in page.items]
        return ObjectResponse(schemas.UserList(data=data, **frame(ids, page.has_more)))

    async def create_user(self, request: Request) -> Response:
        """Answer POST /v1/admin/users."""
        admin, body = self._admin(request), await read_body(request, schemas.CreateUser)
        user = await admin.users.create(**body.model_dump())
        return ObjectResponse(schemas.UserObject.of(user))

    async def retrieve_user(self, request: Request) -> Response:
        """Answer GET /v1/admin/users/{user}."""
        user = await self._admin(request).users.get(request.path_params["user"])
        return ObjectResponse(schemas.UserObject.of(user))

    async def update_user(self, request: Request) -> Response:
        """Answer POST /v1/admin/users/{user}."""
        admin, body = self._admin(request), await read_body(request, schemas.UpdateUser)
        changes = body.model_dump(exclude_unset=True)
        user = await admin.users.update(request.path_params["user"], **changes)
        self._authenticator.forget_user(user.name)
        return ObjectResponse(schemas.UserObject.of(user))

    async def delete_user(self, request: Request) -> Response:
        """Answer DELETE /v1/admin/users/{user}."""
        user = await self._admin(request).users.delete(request.path_params["user"])
        self._authenticator.forget_user(user.name)
        return ObjectResponse(schemas.Deleted(object="user.deleted", id=user.id))

    async def list_user_sessions(self, request: Request) -> Response:
        """Answer GET /v1/admin/users/{user}/sessions."""
        user = await self._admin(request).users.get(request.path_params["user"])
        sessions = await self._authenticator.sessions.list(user.id)
        return session_list(sessions, principal_of(request).session_id)

    async def end_user_sessions(self, request: Request) -> Response:
        """Answer DELETE /v1/admin/users/{user}/sessions."""
        user = await self._admin(request).users.get(request.path_params["user"])
        actor = principal_of(request).actor(source_of(request.scope))
        ended = await self._authenticator.revoke_sessions(user.id, actor)
        return ObjectResponse(schemas.Ended(count=ended))

    async def list_keys(self, request: Request) -> Response:
        """Answer GET /v1/admin/keys."""
        admin, query = self._admin(request), read_query(request, schemas.AccountListQuery)
        page = await admin.keys.list(query.account, after=query.after, limit=query.limit)
        return key_list(page)

    async def create_key(self, request: Request) -> Response:
        """Answer POST /v1/admin/keys."""
        admin, body = self._admin(request), await read_body(request, schemas.CreateKey)
        made = await admin.keys.create(
            body.account,
            role=body.role,
            created_by=principal_of(request).user_id,
            **key_changes(body),
        )
        return new_key(*made)

    async def retrieve_key(self, request: Request) -> Response:
        """Answer GET /v1/admin/keys/{key}."""
        key = await self._admin(request).keys.get(request.path_params["key"])
        return ObjectResponse(schemas.KeyObject.of(key))

    async def update_key(self, request: Request) -> Response:
        """Answer POST /v1/admin/keys/{key}."""
        admin, body = self._admin(request), await read_body(request, schemas.KeyFields)
        key = await admin.keys.update(request.path_params["key"], **key_changes(body))
        self._authenticator.forget_key(key.id)
        return ObjectResponse(schemas.KeyObject.of(key))

    async def revoke_key(self, request: Request) -> Response:
        """Answer DELETE /v1/admin/keys/{key}."""
        key = await self._admin(request).keys.revoke(request.path_params["key"])
        self._authenticator.forget_key(key.id)
        return ObjectResponse(schemas.KeyObject.of(key))

    async def rotate_key(self, request: Request) -> Response:
        """Answer POST /v1/admin/keys/{key}/rotate."""
        admin, body = self._admin(request), await read_rotation(request)
        reference = request.path_params["key"]
        made = await admin.keys.rotate(reference, grace_s=body.grace_seconds)
        self._authenticator.forget_key(reference)
        return new_key(*made)

    async def usage(self, request: Request) -> Response:
        """Answer GET /v1/admin/usage."""
        admin, query = self._admin(request), read_query(request, schemas.AdminUsageQuery)
        account_id = await admin.accounts.id_of(query.account)
        return ObjectResponse(await usage_of(self._ledger, account_id, query))

    async def list_audit(self, request: Request) -> Response:
        """Answer GET /v1/admin/audit."""
        admin, query = self._admin(request), read_query(request, schemas.AuditQuery)
        account_id = await admin.accounts.id_of(query.account)
        page = await admin.audit.list(
            account_id=account_id,
            actor=query.actor,
            action=query.action,
            target=query.target,
            after=query.after,
            limit=query.limit,
        )
        data = [schemas.AuditObject.of(entry) for entry in page.items]
        ids = [str(entry.id) for entry in page.items]
        return ObjectResponse(schemas.AuditList(data=data, **frame(ids, page.has_more)))

    def _admin(self, request: Request) -> Administration:
        """Return what the caller may administer. Raises PermissionDenied."""
        principal = principal_of(request)
        actor = principal.actor(source_of(request.scope))
        if principal.role != "admin":
            audit = self._administration.audit
            target = f"{request.method} {request.scope['route'].path}"
            audit.note(
                audit.entry(actor, "admin.access", target, principal.account_id, outcome="denied")
            )
            raise PermissionDenied("Only administrators may do this.")
        return self._administration.acting(actor)


def add_admin_routes(app: FastAPI, routes: AdminRoutes) -> None:
    """Add all of them to the application."""
    add = partial(openapi.add_route, app, tag="Administration")
    account, accounts = schemas.AccountObject, schemas.AccountList
    user, key, new = schemas.UserObject, schemas.KeyObject, schemas.NewKeyObject
    root = "/v1/admin"
    add("GET", f"{root}/accounts", routes.list_accounts, accounts,
        summary="List accounts", query=schemas.ListQuery)  # fmt: skip
    add("POST", f"{root}/accounts", routes.create_account, account,
        summary="Create an account", body=schemas.CreateAccount)  # fmt: skip
    add("GET", f"{root}/accounts/{{account}}", routes.retrieve_account, account,
        summary="Retrieve an account, by id or name")  # fmt: skip
    add("POST", f"{root}/accounts/{{account}}", routes.update_account, account,
        summary="Change an account", body=schemas.UpdateAccount)  # fmt: skip
    add("GET", f"{root}/users", routes.list_users, schemas.UserList,
        summary="List users", query=schemas.AccountListQuery)  # fmt: skip
    add("POST", f"{root}/users", routes.create_user, user,
        summary="Create a user", body=schemas.CreateUser)  # fmt: skip
    add("GET", f"{root}/users/{{user}}", routes.retrieve_user, user,
        summary="Retrieve a user, by id or name")  # fmt: skip
    add("POST", f"{root}/users/{{user}}", routes.update_user, user,
        summary="Change a user's role or password", body=schemas.UpdateUser)  # fmt: skip
    add("DELETE", f"{root}/users/{{user}}", routes.delete_user, schemas.Deleted,
        summary="Delete a user")  # fmt: skip
    add("GET", f"{root}/users/{{user}}/sessions", routes.list_user_sessions, schemas.SessionList,
        summary="List a user's sessions")  # fmt: skip
    add("DELETE", f"{root}/users/{{user}}/sessions", routes.end_user_sessions, schemas.Ended,
        summary="End a user's sessions")  # fmt: skip
    add("GET", f"{root}/keys", routes.list_keys, schemas.KeyList,
        summary="List API keys", query=schemas.AccountListQuery)  # fmt: skip
    add("POST", f"{root}/keys", routes.create_key, new,
        summary="Create an API key", body=schemas.CreateKey)  # fmt: skip
    add("GET", f"{root}/keys/{{key}}", routes.retrieve_key, key,
        summary="Retrieve an API key")  # fmt: skip
    add("POST", f"{root}/keys/{{key}}", routes.update_key, key,
        summary="Change an API key", body=schemas.KeyFields)  # fmt: skip
    add("DELETE", f"{root}/keys/{{key}}", routes.revoke_key, key,
        summary="Revoke an API key")  # fmt: skip
    add("POST", f"{root}/keys/{{key}}/rotate", routes.rotate_key, new,
        summary="Replace an API key", body=schemas.RotateKey, body_required=False)  # fmt: skip
    add("GET", f"{root}/usage", routes.usage, schemas.UsageList,
        summary="Sum up usage", query=schemas.AdminUsageQuery)  # fmt: skip
    add("GET", f"{root}/audit", routes.list_audit, schemas.AuditList,
        summary="Read the audit log", query=schemas.AuditQuery)  # fmt: skip
