"""A job's progress as metrics, on the endpoint of the Ray that it runs on."""

from __future__ import annotations

import time
from types import TracebackType

import ray.util.metrics

from omai_ray.telemetry import metrics
from omai_ray.telemetry.recorder import Exporter, InstrumentSink, Recorder
from pipelines.progress import Snapshot
from pipelines.run import Tick
from pipelines.unit import UnitResult


class JobMetrics:
    """A context that hands a job's totals on to `tick`, and to Ray.

    model: what the metrics call its model. rows: those that this run has to do.
    """

    def __init__(self, tick: Tick, model: str, rows: int) -> None:
        self._tick, self._model, self._rows = tick, model, rows
        self._recorder = Recorder()
        self._done = (0, 0, 0)
        self._began: float | None = None

    def __enter__(self) -> JobMetrics:
        self._exporter = Exporter(self._recorder, InstrumentSink(ray.util.metrics))
        self._recorder.set(metrics.BULK_JOBS, 1, self._model)
        self._recorder.set(metrics.BULK_ROWS_LEFT, self._rows, self._model)
        self._count(0, 0, 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for gauge in (metrics.BULK_JOBS, metrics.BULK_ROWS_LEFT, metrics.BULK_ETA):
            self._recorder.set(gauge, 0, self._model)
        self._exporter.close()

    def tick(self, rows: int, tokens: int, dead: int) -> None:
        """Take new totals."""
        now = time.monotonic()
        self._began = self._began or now
        snapshot = Snapshot(rows, self._rows, tokens, dead, now - self._began)
        self._recorder.set(metrics.BULK_ROWS_LEFT, self._rows - rows, self._model)
        if snapshot.eta_s is not None:
            self._recorder.set(metrics.BULK_ETA, snapshot.eta_s, self._model)
        self._count(rows, tokens, dead)
        self._tick(rows, tokens, dead)

    def committed(self, result: UnitResult) -> None:
        """Take a unit's result: totals come twice a second, so the last may never come."""
        rows, tokens, dead = self._done
        self._done = (rows + result.rows, tokens + result.tokens, dead + result.dead)
        self._count(*self._done)

    def _count(self, rows: int, tokens: int, dead: int) -> None:
        self._recorder.count_to(metrics.BULK_ROWS, rows, self._model)
        self._recorder.count_to(metrics.BULK_TOKENS, tokens, self._model)
        self._recorder.count_to(metrics.BULK_DEAD_LETTERS, dead, self._model)
