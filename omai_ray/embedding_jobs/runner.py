"""What drivers want of whoever does jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from omai_ray.embedding_jobs.queue import Done
from omai_ray.store import EmbeddingJob


class Refused(Exception):
    """A job cannot be done as asked; the message is for its owner."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a job's input is."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Joined:
    """Bytes of the files with rows and with dead letters, where made."""

    output_bytes: int | None = None
    error_bytes: int | None = None


class Runner(Protocol):
    """Does jobs somewhere; raises Refused for what is the job's own fault."""

    async def measure(self, job: EmbeddingJob) -> Measured:
        """Return what the input is, looked at without embedding any of it."""

    async def run(self, job: EmbeddingJob, tell: Callable[[Done], None]) -> None:
        """Do what is not done yet. Cancelling it ends the work; what is committed stays."""

    async def done(self, job: EmbeddingJob) -> Done:
        """Return what is committed."""

    async def join(self, job: EmbeddingJob, output: str, error: str) -> Joined:
        """Put together what is committed among the files as content under these names."""

    async def leftovers(self) -> Sequence[str]:
        """Return the jobs that have a directory among the files."""

    async def discard(self, name: str) -> None:
        """Remove a job's directory among the files."""
