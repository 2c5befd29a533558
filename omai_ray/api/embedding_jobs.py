"""/v1/embedding_jobs: parquet that the caller's account has embedded by and by."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api import openapi
from omai_ray.api.accounting import own_of, permitted, principal_of
from omai_ray.api.backends import ServedModels
from omai_ray.api.records import frame
from omai_ray.api.render import ObjectResponse
from omai_ray.api.schemas import embedding_jobs as schemas
from omai_ray.api.schemas.batches import NewestFirst
from omai_ray.api.validation import read_body, read_query
from omai_ray.embedding_jobs.jobs import EmbeddingJobs
from omai_ray.errors import ConfigError, InvalidRequest
from omai_ray.text.template import parse_template


class JobRoutes:
    """Answers about the jobs of the caller's account; a driver elsewhere does them."""

    def __init__(self, jobs: EmbeddingJobs, models: ServedModels) -> None:
        self._jobs = jobs
        self._models = models

    async def create(self, request: Request) -> Response:
        """Answer POST /v1/embedding_jobs."""
        body, principal = (
            await read_body(request, schemas.CreateEmbeddingJob),
            principal_of(request),
        )
        _check(body)
        served = permitted(request, body.model, self._models.embedding(body.model))
        job = await self._jobs.create(
            principal.account_id,
            principal.key_id,
            model=served.spec.name,
            input_file=body.input_file,
            input=body.input,
            output=body.output,
            task=body.task(),
            metadata=body.metadata,
        )
        return ObjectResponse(schemas.EmbeddingJobObject.of(job))

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/embedding_jobs."""
        query = read_query(request, NewestFirst)
        account_id = principal_of(request).account_id
        page = await self._jobs.list(account_id, after=query.after, limit=query.limit)
        data = [schemas.EmbeddingJobObject.of(job) for job in page.items]
        ids = [job.id for job in page.items]
        return ObjectResponse(schemas.EmbeddingJobList(data=data, **frame(ids, page.has_more)))

    async def retrieve(self, request: Request) -> Response:
        """Answer GET /v1/embedding_jobs/{job_id}."""
        return ObjectResponse(
            schemas.EmbeddingJobObject.of(await self._jobs.get(*own_of(request, "job_id")))
        )

    async def cancel(self, request: Request) -> Response:
        """Answer POST /v1/embedding_jobs/{job_id}/cancel."""
        job = await self._jobs.cancel(*own_of(request, "job_id"))
        return ObjectResponse(schemas.EmbeddingJobObject.of(job))


def _check(body: schemas.CreateEmbeddingJob) -> None:
    """Raise InvalidRequest for fields that do not go together."""
    for one, other in (("input_file", "input"), ("column", "template")):
        if (getattr(body, one) is None) == (getattr(body, other) is None):
            raise _invalid(one, f"give '{one}' or '{other}', one of the two")
    if body.template is not None:
        try:
            parse_template(body.template)
        except ConfigError as error:
            raise _invalid("template", error.message) from None
    if body.input is not None and body.output is None:
        raise _invalid("output", "a job that reads a location needs one to write to")
    if body.chunks is not None and body.on_long != "chunk":
        raise _invalid("chunks", f"'on_long' is '{body.on_long}', not 'chunk'")
    tokens = None if body.chunks is None else body.chunks.tokens
    if body.chunks is not None and tokens is not None and body.chunks.overlap >= tokens:
        raise _invalid(
            "chunks.overlap",
            f"it is {body.chunks.overlap} and must be below 'chunks.tokens' ({tokens})",
        )


def _invalid(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{field}': {why}.", param=field)


def add_job_routes(app: FastAPI, routes: JobRoutes) -> None:
    """Add all of them to the application."""
    add = partial(openapi.add_route, app, tag="Embedding jobs")
    job, root = schemas.EmbeddingJobObject, "/v1/embedding_jobs"
    add("POST", root, routes.create, job, summary="Create an embedding job",
        body=schemas.CreateEmbeddingJob)  # fmt: skip
    add("GET", root, routes.list, schemas.EmbeddingJobList, summary="List embedding jobs",
        query=NewestFirst)  # fmt: skip
    add("GET", f"{root}/{{job_id}}", routes.retrieve, job, summary="Retrieve an embedding job")
    add("POST", f"{root}/{{job_id}}/cancel", routes.cancel, job, summary="Cancel an embedding job")
