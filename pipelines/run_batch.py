"""Units of a batch on a pool of Ray Data actors: each is answered and committed where it is done.

What does so is made in the actor, by a factory that is passed in: this module knows nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.ray_actors import NICENESS
from pipelines.ray_quiet import quiet_ray_data

UNITS_AT_ONCE = 2
"""Of an actor: while the last lines of one are answered, the next one's fill what is free."""

Work = Callable[[str], str | None]
"""Does a unit; returns why it could not be done, None where it was."""


@dataclass(frozen=True, slots=True)
class Pool:
    """How many actors there are, and what each reserves."""

    actors: int
    num_cpus: float
    num_gpus: float = 0.0


class BatchActor:
    """Does a unit a call."""

    def __init__(self, factory: Callable[[], Work]) -> None:
        os.nice(max(0, NICENESS - os.nice(0)))  # beside a server, its requests come first
        self._work = factory()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the unit of a one-row batch `{"unit": text}`; return `{"failure": text or ""}`."""
        failure = self._work(batch["unit"][0])
        return {"failure": np.array([failure or ""], dtype=object)}


def run_units(
    factory: Callable[[], Work], units: Sequence[str], pool: Pool
) -> Iterator[str | None]:
    """Yield, as units are done, None, or why one could not be. Closing it ends the actors."""
    import ray.data

    with quiet_ray_data():
        dataset = ray.data.from_items(
            [{"unit": unit} for unit in units], override_num_blocks=len(units)
        ).map_batches(
            BatchActor,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(
                size=min(pool.actors, len(units)),
                max_concurrent_calls_per_actor=UNITS_AT_ONCE,
                max_tasks_in_flight_per_actor=UNITS_AT_ONCE + 1,
                enable_true_multi_threading=True,
            ),
            fn_constructor_args=(factory,),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
        )
        for row in dataset.iter_rows():
            yield row["failure"] or None
