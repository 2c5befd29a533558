"""Embedding jobs as their accounts see them: created, listed, cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from omai_ray.batches.owned import Owned, hold_input
from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.files import Files
from omai_ray.store import EmbeddingJob, Store
from omai_ray.store.tables import embedding_jobs

MAX_UNFINISHED = 100


class EmbeddingJobs(Owned[EmbeddingJob]):
    """What accounts do with embedding jobs.

    Every method raises NotFound for a job that is not there, or is another account's, and
    Overloaded where the database is away. clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        files: Files,
        allowed: AllowedLocations,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            store, embedding_jobs, EmbeddingJob.from_row, "embjob", "embedding job", clock
        )
        self._files = files
        self._allowed = allowed

    async def create(
        self,
        account_id: str,
        key_id: str | None,
        *,
        model: str,
        input_file: str | None = None,
        input: str | None = None,  # noqa: A002 - the field's name
        output: str | None = None,
        task: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
    ) -> EmbeddingJob:
        """Return a new job over a file of the account's, kept until the job ends, or a location.

        model: its name in the catalog. output: a location, in which the job has a directory of its
        own. Raises InvalidRequest for a file of another purpose, for a location that is not
        allowed, or where too many jobs are at work.
        """
        for field, given in (("input", input), ("output", output)):
            if given is not None:
                await asyncio.to_thread(self._allowed.resolve, field, given, account_id)
        values = self._new(account_id, key_id, metadata)
        values |= {
            "model": model,
            "input_file_id": input_file,
            "input": input,
            "output": None if output is None else f"{output.rstrip('/')}/{values['id']}",
            "task": dict(task),
        }
        async with self._store.writing() as connection:
            if input_file is not None:
                await hold_input(
                    self._files,
                    connection,
                    account_id,
                    input_file,
                    field="input_file",
                    purpose="user_data",
                    user="a job",
                )
            return await self._insert(connection, values, MAX_UNFINISHED, "embedding jobs")
