"""/v1/batches: files of requests that the caller's account has answered by and by."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api import openapi
from omai_ray.api.accounting import own_of, principal_of
from omai_ray.api.records import frame
from omai_ray.api.render import ObjectResponse
from omai_ray.api.schemas import batches as schemas
from omai_ray.api.validation import read_body, read_query
from omai_ray.batches.batches import Batches


class BatchRoutes:
    """Answers about the batches of the caller's account; a driver elsewhere does them."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def create(self, request: Request) -> Response:
        """Answer POST /v1/batches."""
        body, principal = await read_body(request, schemas.CreateBatch), principal_of(request)
        kept = body.output_expires_after
        batch = await self._batches.create(
            principal.account_id,
            principal.key_id,
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            metadata=body.metadata,
            output_expires_s=None if kept is None else kept.seconds,
        )
        return ObjectResponse(schemas.BatchObject.of(batch))

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/batches."""
        query = read_query(request, schemas.NewestFirst)
        account_id = principal_of(request).account_id
        page = await self._batches.list(account_id, after=query.after, limit=query.limit)
        data = [schemas.BatchObject.of(batch) for batch in page.items]
        ids = [batch.id for batch in page.items]
        return ObjectResponse(schemas.BatchList(data=data, **frame(ids, page.has_more)))

    async def retrieve(self, request: Request) -> Response:
        """Answer GET /v1/batches/{batch_id}."""
        batch = await self._batches.get(*own_of(request, "batch_id"))
        return ObjectResponse(schemas.BatchObject.of(batch))

    async def cancel(self, request: Request) -> Response:
        """Answer POST /v1/batches/{batch_id}/cancel."""
        batch = await self._batches.cancel(*own_of(request, "batch_id"))
        return ObjectResponse(schemas.BatchObject.of(batch))


def add_batch_routes(app: FastAPI, routes: BatchRoutes) -> None:
    """Add all of them to the application."""
    add = partial(openapi.add_route, app, tag="Batches")
    batch, root = schemas.BatchObject, "/v1/batches"
    add("POST", root, routes.create, batch, summary="Create a batch",
        body=schemas.CreateBatch)  # fmt: skip
    add("GET", root, routes.list, schemas.BatchList, summary="List batches",
        query=schemas.NewestFirst)  # fmt: skip
    add("GET", f"{root}/{{batch_id}}", routes.retrieve, batch, summary="Retrieve a batch")
    add("POST", f"{root}/{{batch_id}}/cancel", routes.cancel, batch, summary="Cancel a batch")
