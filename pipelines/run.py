"""A job from its plan to its completion record; how units are executed is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omai_ray.errors import ConfigError
from omai_ray.storage import Location
from pipelines.commit import commit_dead_letters
from pipelines.engine import EngineFacts
from pipelines.errors import RunFailed
from pipelines.job import EmbedJob, describe_output, digest
from pipelines.output_rows import made_fields, output_schema
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
from pipelines.report_page import render_page
from pipelines.run_lease import Lease, lease
from pipelines.run_ledger import Entry
from pipelines.run_record import RunRecord
from pipelines.source import InputFile, check_apart, find_files
from pipelines.strays import find_strays
from pipelines.timeline import Timeline
from pipelines.tombstones import bury
from pipelines.unit import UnitResult, UnitSettings

if TYPE_CHECKING:
    from pipelines.sinks.feed import Feeder

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
class Input:
    """What a job reads. footers: of the files that can be read."""

    files: list[InputFile]
    footers: list[Footer]
    rejected: list[RejectedFile]


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
    if job.cache is not None and job.cache.exists() and not job.cache.is_dir():
        raise ConfigError(f"cache {job.cache} is not a directory")
    found = read_input(job)
    with lease(job.output) as held:
        record = RunRecord(job.output)
        if not job.overwrite:
            record.check_settings(describe_output(job))
        progress.stage("starting Ray and loading the model")
        with start(job) as executor:
            facts = executor.describe()
            if job.chunks is not None:
                job.chunks.check_model(facts.context, facts.tokens_around)
            settings = describe_output(job) | {"embedding_fingerprint": facts.fingerprint}
            if not job.overwrite:
                record.check_settings(settings)
            plan = make_plan(job, found, record, settings, provenance(job, facts))
            with _feed(job, found.footers, facts, held) as feeder:
                if job.overwrite:  # once nothing else can be found wrong
                    _start_anew(record, held)
                run = _Run(job, plan, record, held, executor, progress, feeder)
                return run.execute(facts, began)


def read_input(job: EmbedJob) -> Input:
    """Return what the job reads. Raises ConfigError where it cannot be done as asked."""
    check_apart(job.source, job.output)
    files = find_files(job.source, job.within)
    footers, rejected = read_footers(files)
    made = [field.name for field in made_fields(job.chunks, job.row_id)]
    check_columns(footers, job.text, job.columns, made)
    return Input(files, footers, rejected)


def make_plan(
    job: EmbedJob,
    found: Input,
    record: RunRecord,
    settings: dict[str, Any],
    provenance: dict[str, Any],
) -> Plan:
    """Return the units, cut as the run here was if there is one that is not to be overwritten.

    provenance: what the footers of all data files are to say.
    """
    total_rows = sum(footer.rows for footer in found.footers)
    kept = None if job.overwrite else (record.manifest or {}).get("unit_rows")
    unit_rows = job.unit_rows or kept or choose_unit_rows(total_rows)
    units = plan_units(found.footers, unit_rows, digest(settings))
    files = [asdict(footer.file) | {"rows": footer.rows} for footer in found.footers]
    files += [asdict(reject.file) | {"unreadable": reject.detail} for reject in found.rejected]
    return Plan(
        units=units,
        pending=units if job.overwrite else record.pending(units),
        rejected=found.rejected,
        manifest={
            "settings": settings,
            "provenance": provenance,
            "unit_rows": unit_rows,
            "files": files,
        },
    )


def provenance(job: EmbedJob, facts: EngineFacts) -> dict[str, Any]:
    """Return what the footers of all data files say of how their vectors were made."""
    text = {"text_column": job.column, "text_template": job.template}
    chunking = {} if job.chunks is None else {"chunking": asdict(job.chunks)}
    return {
        "model": job.model.name,
        "embedding_fingerprint": facts.fingerprint,
        "embedding_provenance": facts.provenance,
        "dimension": facts.dimension,
        "unit_length": facts.unit_length,
        **{name: value for name, value in text.items() if value is not None},
        **chunking,
        "on_long": job.on_long,
    }


def find_stale(plan: Plan, record: RunRecord) -> list[Entry]:
    """Return what files that are gone, or were cut otherwise, left in the output."""
    planned = {unit.output for unit in plan.units} | {r.file.name for r in plan.rejected}
    noted = [entry for name, entry in record.entries.items() if name not in planned]
    before = record.manifest or {}
    if all(before.get(key) == plan.manifest[key] for key in ("files", "unit_rows")):
        return noted  # whatever else the run here began is planned again
    return [*noted, *find_strays(record, planned)]


def _start_anew(record: RunRecord, held: Lease) -> None:
    """Delete what the run here wrote, and no other file."""
    held.check()
    record.reopen()
    record.sweep()  # so that nobody commits any more
    gone = [*record.entries.values(), *find_strays(record, planned=())]
    _remove(record, held, gone)
    held.check()
    record.clear()


def _remove(record: RunRecord, held: Lease, entries: Sequence[Entry]) -> None:
    """Take units out of the output, and note that their rows went."""
    held.check()
    bury(record, entries, "removed")
    for entry in entries:
        held.check()
        record.remove(entry.output)


@contextmanager
def _feed(
    job: EmbedJob, footers: Sequence[Footer], facts: EngineFacts, held: Lease
) -> Iterator[Feeder | None]:
    """Open the job's sink, if it has one; its libraries are loaded for no other job."""
    if job.sink is None:
        yield None
        return
    from pipelines.sinks.feed import feed_sink
    from pipelines.sinks.rows import row_schema

    made = made_fields(job.chunks, job.row_id)
    outputs = [
        output_schema(footer.schema, job.columns, made, facts.dimension, job.dtype, {})
        for footer in footers
    ]
    schema = row_schema(outputs, facts.fingerprint)
    corpus = describe_output(job)["source"]
    with feed_sink(job.sink, Location.parse(job.output), corpus, schema, held) as feeder:
        yield feeder


@dataclass(frozen=True)
class _Run:
    """A planned job on the output that it holds."""

    job: EmbedJob
    plan: Plan
    record: RunRecord
    held: Lease
    executor: Executor
    progress: Progress
    feeder: Feeder | None

    def execute(self, facts: EngineFacts, began: float) -> Report:
        """Do what is pending. began: when the job did, as time.time()."""
        job, plan, record = self.job, self.plan, self.record
        report = Report(
            output=str(record.output),
            model=job.model.name,
            fingerprint=facts.fingerprint,
            max_dead=job.max_dead,
            int8_cosine=facts.int8_cosine,
            files=len(plan.manifest["files"]),
            units_skipped=len(plan.units) - len(plan.pending),
            actors=min(self.executor.actors, len(plan.pending)),
            price_per_hour=job.price_per_hour,
        )
        self.held.check()
        with record.scratch() as scratch:
            stale = find_stale(plan, record)
            if plan.pending or stale or record.manifest != plan.manifest:
                record.reopen()
                self._remove_stale(stale)  # by the old manifest, which tells the run's own files
                record.write_manifest(plan.manifest)
            report.units_removed = len(stale)
            self._reject_files(scratch)
            if self.feeder:
                self.feeder.catch_up(record.entries, {unit.output for unit in plan.pending})
            if plan.pending:
                settings = self._unit_settings(scratch, facts.fingerprint)
                self._do_units(settings, report, began)
            else:
                self.progress.stage(f"nothing to embed: {len(plan.units):,} units are committed")
        if self.feeder:
            self.progress.stage(f"feeding {self.feeder.name}")
            self.feeder.finish()
            report.sink, report.sink_rows = self.feeder.name, self.feeder.rows
        self.held.check()
        self._complete(report)
        return report

    def _remove_stale(self, stale: list[Entry]) -> None:
        """Remove what is stale; note what goes, and what files that changed replace."""
        _remove(self.record, self.held, stale)
        self.held.check()
        bury(self.record, self._find_replaced(), "replaced")

    def _find_replaced(self) -> list[Entry]:
        keys = {unit.output: unit.key for unit in self.plan.pending}
        keys |= {reject.file.name: _rejected_key(reject) for reject in self.plan.rejected}
        entries = self.record.entries.items()
        return [entry for name, entry in entries if keys.get(name, entry.key) != entry.key]

    def _reject_files(self, scratch: Path) -> None:
        record = self.record
        for reject in self.plan.rejected:
            name, key = reject.file.name, _rejected_key(reject)
            if record.has_rejected(name, key):
                continue
            self.held.check()
            record.output.child(name).delete()
            letter = DeadLetter(None, None, "unreadable_footer", reject.detail)
            commit_dead_letters(record.output, name, scratch, name, [letter])
            record.append(Entry(name, key, source=name, dead_files=1))

    def _unit_settings(self, scratch: Path, fingerprint: str) -> UnitSettings:
        job, output = self.job, self.record.output
        return UnitSettings(
            output=output,
            scratch=scratch if output.is_local else None,
            claim=self.held.claim,
            text=job.text,
            columns=job.columns,
            on_long=job.on_long,
            chunking=job.chunks,
            row_id=job.row_id,
            cache=None if job.cache is None else job.cache.absolute() / fingerprint,
            dtype=job.dtype,
            fingerprint=fingerprint,
            provenance=self.plan.manifest["provenance"],
        )

    def _do_units(self, settings: UnitSettings, report: Report, began: float) -> None:
        units, skipped = self.plan.pending, ""
        rows_total = sum(unit.rows for unit in units)
        if report.units_skipped:
            skipped = f", {report.units_skipped:,} units committed before"
        self.progress.stage(
            f"{rows_total:,} rows in {len(units):,} units, {report.actors} actors{skipped}"
        )
        tick = _ticker(self.progress, report.timeline, rows_total)
        first, last = float("inf"), 0.0
        with closing(self.executor.run(units, settings, tick)) as results:
            for result in results:
                self._commit(result)
                report.add(result)
                first, last = min(first, result.started), max(last, result.ended)
        tick(report.rows_read, report.tokens, report.rows_dead)
        report.startup_s, report.run_s = first - began, last - first

    def _commit(self, result: UnitResult) -> None:
        entry = Entry(**{k: v for k, v in asdict(result).items() if k in _ENTRY_FIELDS})
        self.held.check()
        self.record.append(entry)
        if self.feeder:
            self.feeder.add(entry)

    def _complete(self, report: Report) -> None:
        """Raise RunFailed where a row is neither in the output nor dead-lettered."""
        record = self.record
        report.total(record.entries.values())
        missing = [unit.output for unit in self.plan.units if unit.output not in record.entries]
        rows = sum(unit.rows for unit in self.plan.units)
        counted = report.total_rows_written + report.total_rows_dead
        if missing or counted != rows or report.total_rows != rows:
            raise RunFailed(
                f"{rows} rows were planned and {counted} accounted for "
                f"({len(missing)} units missing); run the same command again"
            )
        if self.plan.pending:
            record.write_report(report.to_dict(), render_page(report))
        if report.ok:
            record.write_success(report.to_dict())
        else:
            record.reopen()  # an earlier run may have allowed more dead rows


def _rejected_key(reject: RejectedFile) -> str:
    return digest([*file_identity(reject.file), "unreadable"])


def _ticker(progress: Progress, timeline: Timeline, rows_total: int) -> Tick:
    started: list[float] = []

    def tick(rows: int, tokens: int, dead: int) -> None:
        started.append(time.monotonic())
        del started[1:]
        elapsed_s = time.monotonic() - started[0]
        timeline.add(elapsed_s, rows, tokens)
        progress.update(Snapshot(rows, rows_total, tokens, dead, elapsed_s))

    return tick
