"""A job from its plan to its completion record; how units are executed is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from omai_ray.storage import Location
from pipelines.commit import commit_dead_letters
from pipelines.engine import EngineFacts
from pipelines.errors import RunFailed
from pipelines.job import EmbedJob, describe_output, digest
from pipelines.plan import (
    Footer,
    RejectedFile,
    Unit,
    check_columns,
    choose_unit_rows,
    file_identity,
    plan_units,
    read_footers,
)
from pipelines.progress import Progress, Snapshot
from pipelines.read import DeadLetter
from pipelines.report import Report
from pipelines.run_lease import Lease, lease
from pipelines.run_ledger import Entry
from pipelines.run_record import RunRecord
from pipelines.source import check_apart, find_files
from pipelines.unit import UnitResult, UnitSettings

Tick = Callable[[int, int, int], None]
_ENTRY_FIELDS = {field.name for field in fields(Entry)}


class Executor(Protocol):
    """Does units of work somewhere. actors: how many at once."""

    actors: int

    def describe(self) -> EngineFacts:
        """Return the model's facts. Raises OMAiError where it cannot be loaded."""
        ...

    def run(
        self, units: Sequence[Unit], settings: UnitSettings, tick: Tick
    ) -> Generator[UnitResult, None, None]:
        """Yield the units' results as they are committed, in any order.

        tick(rows, tokens, dead rows), all of this run so far, is called twice a second or so
        once work has begun. Closing the iterator ends the work. Raises OMAiError.
        """
        ...


Start = Callable[[EmbedJob], AbstractContextManager[Executor]]


@dataclass(frozen=True)
class Plan:
    """What is to be done. units: all of them; pending: those not committed yet."""

    units: list[Unit]
    pending: list[Unit]
    rejected: list[RejectedFile]
    manifest: dict[str, Any]


def run_job(job: EmbedJob, start: Start, progress: Progress) -> Report:
    """Embed what the output does not have yet, and return what was done.

    Raises ConfigError before any work where the job cannot be done as asked, OutputInUse and
    OutputMismatch for the output directory, RunFailed where it stopped; the last resumes.
    """
    began = time.time()
    progress.stage("reading footers")
    check_apart(job.source, job.output)
    footers, rejected = read_footers(find_files(job.source))
    check_columns(footers, job.column, job.columns)
    with lease(job.output) as held:
        record = RunRecord(job.output)
        if not job.overwrite:
            record.check_settings(describe_output(job))
        progress.stage("starting Ray and loading the model")
        with start(job) as executor:
            facts = executor.describe()
            settings = describe_output(job) | {"embedding_fingerprint": facts.fingerprint}
            if job.overwrite:
                record.clear()
            record.check_settings(settings)
            plan = make_plan(job, footers, rejected, record, settings)
            return _execute(job, plan, record, held, executor, facts, progress, began)


def make_plan(
    job: EmbedJob,
    footers: Sequence[Footer],
    rejected: list[RejectedFile],
    record: RunRecord,
    settings: dict[str, Any],
) -> Plan:
    """Return the units, cut as the run here was if there is one."""
    total_rows = sum(footer.rows for footer in footers)
    kept = (record.manifest or {}).get("unit_rows")
    unit_rows = job.unit_rows or kept or choose_unit_rows(total_rows)
    units = plan_units(footers, unit_rows, digest(settings))
    files = [asdict(footer.file) | {"rows": footer.rows} for footer in footers]
    files += [asdict(reject.file) | {"unreadable": reject.detail} for reject in rejected]
    return Plan(
        units=units,
        pending=record.pending(units),
        rejected=rejected,
        manifest={"settings": settings, "unit_rows": unit_rows, "files": files},
    )


def _execute(
    job: EmbedJob,
    plan: Plan,
    record: RunRecord,
    held: Lease,
    executor: Executor,
    facts: EngineFacts,
    progress: Progress,
    began: float,
) -> Report:
    report = Report(
        output=str(job.output),
        model=job.model.name,
        fingerprint=facts.fingerprint,
        max_dead=job.max_dead,
        int8_cosine=facts.int8_cosine,
        files=len(plan.manifest["files"]),
        units_skipped=len(plan.units) - len(plan.pending),
        actors=min(executor.actors, len(plan.pending)),
    )
    held.check()
    if plan.pending or record.manifest != plan.manifest:
        record.write_manifest(plan.manifest)
    with record.scratch() as scratch:
        report.units_removed = _remove_stale(plan, record)
        _reject_files(plan, record, scratch)
        if plan.pending:
            settings = _unit_settings(job, facts, record.output, scratch, held)
            _do_units(plan.pending, settings, record, held, executor, progress, report, began)
    held.check()
    report.total(record.entries.values())
    _check_complete(plan, record, report)
    if report.ok:
        record.write_success(report.to_dict())
    return report


def _remove_stale(plan: Plan, record: RunRecord) -> int:
    """Remove what files that are gone, or were cut otherwise, left in the output."""
    planned = {unit.output for unit in plan.units} | {r.file.name for r in plan.rejected}
    stale = [name for name in record.entries if name not in planned]
    for name in stale:
        record.remove(name)
    return len(stale)


def _reject_files(plan: Plan, record: RunRecord, scratch: Path) -> None:
    for reject in plan.rejected:
        file = reject.file
        key = digest([*file_identity(file), "unreadable"])
        if record.is_noted(file.name, key):
            continue
        record.output.child(file.name).delete()
        letter = DeadLetter(None, None, "unreadable_footer", reject.detail)
        commit_dead_letters(record.output, file.name, scratch, file.name, [letter])
        record.append(Entry(file.name, key, dead_files=1))


def _unit_settings(
    job: EmbedJob, facts: EngineFacts, output: Location, scratch: Path, held: Lease
) -> UnitSettings:
    return UnitSettings(
        output=output,
        scratch=scratch if output.is_local else None,
        claim=held.claim,
        column=job.column,
        columns=job.columns,
        on_long=job.on_long,
        dtype=job.dtype,
        provenance={
            "model": job.model.name,
            "embedding_fingerprint": facts.fingerprint,
            "embedding_provenance": facts.provenance,
            "text_column": job.column,
            "on_long": job.on_long,
        },
    )


def _do_units(
    units: Sequence[Unit],
    settings: UnitSettings,
    record: RunRecord,
    held: Lease,
    executor: Executor,
    progress: Progress,
    report: Report,
    began: float,
) -> None:
    rows_total = sum(unit.rows for unit in units)
    skipped = f", {report.units_skipped:,} units committed before" if report.units_skipped else ""
    progress.stage(f"{rows_total:,} rows in {len(units):,} units, {report.actors} actors{skipped}")
    tick = _ticker(progress, rows_total)
    first, last = float("inf"), 0.0
    with closing(executor.run(units, settings, tick)) as results:
        for result in results:
            values = {k: v for k, v in asdict(result).items() if k in _ENTRY_FIELDS}
            held.check()
            record.append(Entry(**values))
            report.add(result)
            first, last = min(first, result.started), max(last, result.ended)
    tick(report.rows_read, report.tokens, report.rows_dead)
    report.startup_s, report.run_s = first - began, last - first


def _ticker(progress: Progress, rows_total: int) -> Tick:
    started: list[float] = []

    def tick(rows: int, tokens: int, dead: int) -> None:
        started.append(time.monotonic())
        del started[1:]
        elapsed_s = time.monotonic() - started[0]
        progress.update(Snapshot(rows, rows_total, tokens, dead, elapsed_s))

    return tick


def _check_complete(plan: Plan, record: RunRecord, report: Report) -> None:
    """Raise RunFailed where a row of the input is neither in the output nor dead-lettered."""
    missing = [unit.output for unit in plan.units if unit.output not in record.entries]
    rows = sum(unit.rows for unit in plan.units)
    counted = report.total_rows_written + report.total_rows_dead
    if missing or counted != rows or report.total_rows != rows:
        raise RunFailed(
            f"{rows} rows were planned and {counted} accounted for "
            f"({len(missing)} units missing); run the same command again"
        )
