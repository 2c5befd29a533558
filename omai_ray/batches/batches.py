"""Batches as their accounts see them: created, listed, cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from omai_ray.batches.lines import Endpoint
from omai_ray.batches.owned import Owned, hold_input
from omai_ray.files import Files
from omai_ray.store import Batch, Store
from omai_ray.store.tables import batches

WINDOW = "24h"
WINDOW_S = 86_400.0
MAX_UNFINISHED = 1000


class Batches(Owned[Batch]):
    """What accounts do with batches.

    Every method raises NotFound for a batch that is not there, or is another account's, and
    Overloaded where the database is away. clock: seconds since the epoch.
    """

    def __init__(self, store: Store, files: Files, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store, batches, Batch.from_row, "batch", "batch", clock)
        self._files = files

    async def create(
        self,
        account_id: str,
        key_id: str | None,
        *,
        input_file_id: str,
        endpoint: Endpoint,
        metadata: Mapping[str, str] | None = None,
        output_expires_s: int | None = None,
    ) -> Batch:
        """Return a new batch over a file of the account's, which is kept until the batch ends.

        Raises InvalidRequest for a file of another purpose, or where too many batches are at work.
        """
        values = self._new(account_id, key_id, metadata)
        values |= {
            "endpoint": endpoint,
            "completion_window": WINDOW,
            "input_file_id": input_file_id,
            "output_expires_s": output_expires_s,
            "expires": values["created"] + WINDOW_S,
        }
        async with self._store.writing() as connection:
            await hold_input(
                self._files,
                connection,
                account_id,
                input_file_id,
                field="input_file_id",
                purpose="batch",
                user="a batch",
            )
            return await self._insert(connection, values, MAX_UNFINISHED, "batches")
