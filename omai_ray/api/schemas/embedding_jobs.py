"""Embedding jobs, as they travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from omai_ray.api.schemas.common import Metadata, ModelName, RequestBody
from omai_ray.store import EmbeddingJob

Column = Annotated[str, Field(min_length=1, max_length=512)]
Place = Annotated[str, Field(min_length=1, max_length=2048)]
OnLong = Literal["truncate", "error", "chunk"]
Dtype = Literal["float32", "float16"]
Status = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled"
]


class Chunks(RequestBody):
    """How texts are cut; tokens: of a chunk, the model's context by default; pool: one row a text.

    overlap: tokens of a chunk that the next one begins with.
    """

    tokens: Annotated[int, Field(ge=1, le=10**7)] | None = None
    overlap: Annotated[int, Field(ge=0, le=10**7)] = 0
    pool: Literal["mean"] | None = None


class CreateEmbeddingJob(RequestBody):
    """Parquet whose rows are to be embedded.

    `input_file` was uploaded with purpose `user_data`; `input` is a location that the server
    allows, whose rows go to `output`, another one. column: the text; or template: several columns'
    values, such as `{title} {body}`. columns: those that are carried to the output, all by default.
    on_long: what becomes of a text above the model's context. dtype: of the vectors.
    """

    model: ModelName
    input_file: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    input: Place | None = None
    output: Place | None = None
    column: Column | None = None
    template: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    columns: Annotated[list[Column], Field(max_length=1000)] | None = None
    on_long: OnLong = "truncate"
    chunks: Chunks | None = None
    dtype: Dtype = "float32"
    metadata: Metadata | None = None

    def task(self) -> dict[str, Any]:
        """Return how it is to be done, without what was left out."""
        how = self.model_dump(
            include={"column", "template", "columns", "on_long", "chunks", "dtype"}
        )
        return {name: value for name, value in how.items() if value is not None}


class RowCounts(BaseModel):
    """Rows of the input; completed are embedded, failed are dead-lettered."""

    total: int
    completed: int
    failed: int


class JobUsage(BaseModel):
    """Tokens embedded so far."""

    input_tokens: int
    total_tokens: int


class JobError(BaseModel):
    """What a job has failed by."""

    code: str
    message: str


class EmbeddingJobObject(BaseModel):
    """A job, and how far it is. output: the directory that it writes; else there are files."""

    id: str
    object: Literal["embedding_job"] = "embedding_job"
    model: str
    status: Status
    error: JobError | None
    input_file: str | None
    input: str | None
    output: str | None
    output_file_id: str | None
    error_file_id: str | None
    column: str | None
    template: str | None
    columns: list[str] | None
    on_long: OnLong
    chunks: Chunks | None
    dtype: Dtype
    created_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    row_counts: RowCounts
    usage: JobUsage
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, job: EmbeddingJob) -> Self:
        """Return a job as it travels."""
        times = ("in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled")
        how = ("column", "template", "columns", "on_long", "chunks", "dtype")
        same = ("id", "model", "status", "error", "input", "output", "output_file_id",
                "error_file_id", "metadata")  # fmt: skip
        values: dict[str, Any] = {name: getattr(job, name) for name in same}
        values |= {name: job.task.get(name) for name in how}
        for time in times:
            at = getattr(job, f"{time}_at")
            values[f"{time}_at"] = None if at is None else int(at)
        return cls(
            input_file=job.input_file_id,
            created_at=int(job.created),
            row_counts=RowCounts(total=job.total, completed=job.completed, failed=job.failed),
            usage=JobUsage(input_tokens=job.tokens, total_tokens=job.tokens),
            **values,
        )


class EmbeddingJobList(BaseModel):
    """A page of jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[EmbeddingJobObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
