"""What runs in Ray's processes: the worker that embeds units, the board that shows how far."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.exceptions

from omai_ray.catalog import ModelSpec
from omai_ray.errors import OMAiError
from omai_ray.garbage import start_uncollected
from omai_ray.priority import give_way_to_servers
from pipelines.engine import Engine, actor_threads, describe_engine
from pipelines.plan import Unit
from pipelines.run import Tick
from pipelines.source import InputFile
from pipelines.unit import UnitSettings, process_unit

UNIT_ATTEMPTS = 3
POLL_S = 0.5
POLL_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Board:
    """An actor with the running totals of every unit; a unit that is retried starts anew."""

    def __init__(self) -> None:
        self._units: dict[str, tuple[int, int, int]] = {}
        self._total = (0, 0, 0)
        self._attempts: Counter[str] = Counter()

    def begin(self, unit: str) -> int:
        """Note that a unit is begun, and return how often it has been, this time included."""
        self.put(unit, 0, 0, 0)
        self._attempts[unit] += 1
        return self._attempts[unit]

    def put(self, unit: str, rows: int, tokens: int, dead: int) -> None:
        """Set a unit's totals."""
        before = self._units.get(unit, (0, 0, 0))
        now = self._units[unit] = (rows, tokens, dead)
        all_rows, all_tokens, all_dead = (
            total + new - old for total, new, old in zip(self._total, now, before, strict=True)
        )
        self._total = all_rows, all_tokens, all_dead

    def total(self) -> tuple[int, int, int] | None:
        """Return rows, tokens and dead rows so far; None before the first unit's start."""
        return self._total if self._units else None


class EmbedWorker:
    """One copy of the model, in a Ray Data actor; it does and commits a unit a call.

    A unit's failure is returned, not raised, so that Ray's traceback stays in its own log.
    """

    def __init__(
        self,
        factory: Callable[[ModelSpec], Engine],
        model: ModelSpec,
        settings: UnitSettings,
        board: Any,
    ) -> None:
        give_way_to_servers()
        os.environ["RAYON_NUM_THREADS"] = str(actor_threads(model))  # the tokenizer's threads
        self._name = ray.get_runtime_context().get_actor_id() or ""
        with start_uncollected():
            self._engine = factory(model)
        self._settings = settings
        self._board = board

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the unit of a one-row batch `{"unit": json}`; return `{"result": json}`."""
        values = json.loads(batch["unit"][0])
        unit = Unit(**(values | {"file": InputFile(**values["file"])}))
        return {"result": np.array([json.dumps(self._do(unit))], dtype=object)}

    def _do(self, unit: Unit) -> dict[str, Any]:
        def report(rows: int, tokens: int, dead: int) -> None:
            self._board.put.remote(unit.output, rows, tokens, dead)

        if self._engine.fingerprint != self._settings.fingerprint:
            return {"failure": _another(self._engine, self._settings)}
        attempts = ray.get(self._board.begin.remote(unit.output))
        if attempts > UNIT_ATTEMPTS:  # Ray itself restarts an actor that dies without end
            return {
                "failure": f"{unit.output}: its worker died {UNIT_ATTEMPTS} times; is there "
                "enough memory for the model?"
            }
        try:
            result = process_unit(unit, self._settings, self._engine, report)
            return asdict(result) | {"worker": self._name}
        except OMAiError as error:
            return {"failure": error.message}
        except Exception as error:
            log.exception("unit %s failed", unit.output)
            return {"failure": f"{unit.output}: {type(error).__name__}: {error}"}


def _another(engine: Engine, settings: UnitSettings) -> str:
    """Return what is wrong with a worker's engine: its vectors would not go with the others."""
    mine = describe_engine(engine).provenance
    theirs = settings.provenance["embedding_provenance"]
    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    differing = sorted(key for key in mine.keys() | theirs if mine.get(key) != theirs.get(key))
    return (
        f"the model is not the same on every node: on {node} it differs "
        f"from the run's in {', '.join(differing)}. Give its dtype and revision, and the same "
        "files everywhere"
    )


class Pump:
    """A context in which a thread hands the board's totals to `tick`."""

    def __init__(self, board: Any, tick: Tick) -> None:
        self._board, self._tick = board, tick
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            try:
                total = ray.get(self._board.total.remote(), timeout=POLL_TIMEOUT_S)
            except ray.exceptions.RayError:
                continue  # progress is a courtesy: the job itself says when Ray is gone
            if total is not None and not self._stopped.is_set():
                self._tick(*total)
