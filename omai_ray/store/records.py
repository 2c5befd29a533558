"""Rows as the rest of the platform sees them. Times are seconds since the epoch, UTC."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from sqlalchemy import RowMapping

AccountStatus = Literal["active", "suspended"]
Role = Literal["owner", "member", "admin"]
Outcome = Literal["success", "failure", "denied"]
Purpose = Literal["batch", "batch_output", "user_data"]
BatchOutcome = Literal["completed", "failed", "expired", "cancelled"]
BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


@dataclass(frozen=True, slots=True)
class _Record:
    @classmethod
    def from_row(cls, row: RowMapping, prefix: str = "") -> Self:
        """Pick this record's columns, named `prefix` + field, out of a row's mapping."""
        return cls(**{field.name: row[prefix + field.name] for field in fields(cls)})

    def row(self) -> dict[str, Any]:
        """Return the record as its table takes it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Account(_Record):
    """Who pays: keys and users belong to it, and share its limits.

    monthly_tokens: what it may use in a calendar month, None without bound. models: the names that
    it may use, None for all.
    """

    id: str
    name: str
    tier: str
    status: AccountStatus
    monthly_tokens: int | None
    models: tuple[str, ...] | None
    created: float


@dataclass(frozen=True, slots=True)
class User(_Record):
    """Someone who can log in. password_hash: argon2id, in PHC form."""

    id: str
    name: str
    password_hash: str
    account_id: str
    role: Role
    created: float

    def __repr__(self) -> str:
        return f"User(id={self.id!r}, name={self.name!r}, role={self.role!r})"


@dataclass(frozen=True, slots=True)
class ApiKey(_Record):
    """What is known of a key; its secret is not. mac: hex, under the pepper of that version.

    role: `member`, or `admin` for a key that may use the administrative API. requests_per_minute,
    tokens_per_minute, models: limits of its own, below its account's. created_by: a user's id.
    replaced_by: the key that rotation made in its place.
    """

    id: str
    account_id: str
    name: str
    role: Role
    last_four: str
    mac: str
    pepper_version: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    models: tuple[str, ...] | None
    created: float
    created_by: str | None
    last_used: float | None
    expires: float | None
    revoked_at: float | None
    replaced_by: str | None

    def __repr__(self) -> str:
        return f"ApiKey(id={self.id!r}, name={self.name!r}, last_four={self.last_four!r})"


@dataclass(frozen=True, slots=True)
class Session(_Record):
    """A login. id: SHA-256 of what the cookie holds. expires: the absolute end."""

    id: str
    user_id: str
    created: float
    last_seen: float
    expires: float
    source: str | None
    user_agent: str | None


@dataclass(frozen=True, slots=True)
class AuditEntry(_Record):
    """Something that was done, or tried, and by whom.

    actor: a user's or key's id, `cli:` and the system's user, or `system`. target: what it was
    done to, by id. account_id: whose account it concerns. details: changed values, never a secret.
    """

    id: int
    at: float
    actor: str
    actor_name: str | None
    action: str
    target: str | None
    account_id: str | None
    outcome: Outcome
    request_id: str | None
    source: str | None
    details: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class File(_Record):
    """What is known of a file; its content is kept under its id. filename: as its owner calls it.

    expires: None for never. in_use: how many batches and jobs that have not ended read it.
    """

    id: str
    account_id: str
    purpose: Purpose
    filename: str
    bytes: int
    created: float
    expires: float | None
    in_use: int


@dataclass(frozen=True, slots=True)
class Batch(_Record):
    """A file of requests that is answered by and by.

    outcome: how it will have ended, once nothing more is answered. total, completed, failed: its
    requests. enqueued_tokens: what it counts for the tier's limit. model: its name in the catalog.
    key_id: of the key that made it, if one did. output_expires_s: how long its files are kept.
    """

    id: str
    account_id: str
    key_id: str | None
    endpoint: str
    completion_window: str
    input_file_id: str
    metadata: dict[str, str] | None
    output_expires_s: int | None
    status: BatchStatus
    outcome: BatchOutcome | None
    model: str | None
    errors: list[dict[str, Any]] | None
    output_file_id: str | None
    error_file_id: str | None
    created: float
    expires: float
    in_progress_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    failed_at: float | None
    expired_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None
    total: int
    completed: int
    failed: int
    enqueued_tokens: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class BatchUnit(_Record):
    """Lines of a batch's input that are answered together. offset, length: in bytes.

    part: the name of what has their answers, None until they are; its first output_bytes are for
    the output file, the rest for the error file.
    """

    batch_id: str
    number: int
    offset: int
    length: int
    first_line: int
    lines: int
    part: str | None
    output_bytes: int | None


@dataclass(frozen=True, slots=True)
class EmbeddingJob(_Record):
    """Parquet files that are embedded as one job.

    input_file_id, or input: a file of the account's, or a location. output: the job's own directory
    in a location; None leaves a file of the account's. task: how it is done, as the request said
    (column or template, columns, on_long, chunks, dtype). total, completed, failed: rows of the
    input; tokens: of those that were embedded. The rest is as a Batch has it.
    """

    id: str
    account_id: str
    key_id: str | None
    model: str
    input_file_id: str | None
    input: str | None
    output: str | None
    task: dict[str, Any]
    metadata: dict[str, str] | None
    status: BatchStatus
    error: dict[str, str] | None
    output_file_id: str | None
    error_file_id: str | None
    created: float
    in_progress_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    failed_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None
    total: int
    completed: int
    failed: int
    tokens: int
    enqueued_tokens: int
