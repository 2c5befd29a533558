"""Batches, as they travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from omai_ray.api.schemas.administration import Query
from omai_ray.api.schemas.common import Metadata, RequestBody
from omai_ray.batches.lines import Endpoint
from omai_ray.batches.owned import MAX_PAGE
from omai_ray.files import MAX_LIFE_S, MIN_LIFE_S
from omai_ray.store import Batch, BatchStatus


class OutputExpiresAfter(RequestBody):
    """For how long the files that a batch leaves are kept, from when they are made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_LIFE_S, le=MAX_LIFE_S)]


class CreateBatch(RequestBody):
    """A file of requests to one endpoint, uploaded with purpose `batch`, that is to be answered."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=128)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class NewestFirst(Query):
    """Of a list of batches or jobs. after: the id of the last one that was seen."""

    after: Annotated[str, Field(max_length=128)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 20


class BatchError(BaseModel):
    """What is wrong with an input; line: where, if it is one line's."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(BaseModel):
    """All that is wrong with an input, or the first of it."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchCounts(BaseModel):
    """How many requests there are, and what became of them so far."""

    total: int
    completed: int
    failed: int


class BatchInputDetails(BaseModel):
    """cached_tokens: of those read, not computed."""

    cached_tokens: int


class BatchOutputDetails(BaseModel):
    """There is no reasoning here: always 0."""

    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """Tokens of the requests that were answered so far."""

    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: BatchOutputDetails
    total_tokens: int


class BatchObject(BaseModel):
    """A batch. Times are seconds since the epoch, null where that has not come."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsage
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Return a batch as it travels."""
        times: dict[str, Any] = {
            name: _seconds(getattr(batch, name))
            for name in (
                "in_progress_at",
                "finalizing_at",
                "completed_at",
                "failed_at",
                "expired_at",
                "cancelling_at",
                "cancelled_at",
            )
        }
        return cls(
            id=batch.id,
            endpoint=batch.endpoint,
            model=batch.model,
            errors=_errors(batch),
            input_file_id=batch.input_file_id,
            status=batch.status,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            created_at=int(batch.created),
            expires_at=int(batch.expires),
            request_counts=BatchCounts(
                total=batch.total, completed=batch.completed, failed=batch.failed
            ),
            usage=BatchUsage(
                input_tokens=batch.prompt_tokens,
                input_tokens_details=BatchInputDetails(cached_tokens=batch.cached_tokens),
                output_tokens=batch.completion_tokens,
                output_tokens_details=BatchOutputDetails(),
                total_tokens=batch.prompt_tokens + batch.completion_tokens,
            ),
            metadata=batch.metadata,
            **times,
        )


class BatchList(BaseModel):
    """A page of batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _errors(batch: Batch) -> BatchErrors | None:
    if batch.errors is None:
        return None
    return BatchErrors(data=[BatchError(**error) for error in batch.errors])


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
