"""What a run would do, told from footers and records alone: nothing is written, no model loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.checkpoint import hash_files
from omai_ray.storage import Location
from omai_ray.text.embedding_input import EmbeddingTokenizer
from pipelines.job import EmbedJob, describe_output
from pipelines.plan import RejectedFile, Unit, file_identity
from pipelines.run import find_stale, make_plan, read_input
from pipelines.run_lease import check_ours
from pipelines.run_ledger import Entry
from pipelines.run_record import RunRecord
from pipelines.source import InputFile

Describe = Callable[[ModelSpec], Mapping[str, Any]]


@dataclass(frozen=True)
class Preview:
    """A run that has not begun, beside the one whose output is there.

    files: all of the input. new, changed, deleted: names, against the files of the last run.
    unfinished: files that are as they were, with units that are not committed, or not whole.
    rejected: those whose footers cannot be read. stale: outputs that would be removed.
    settings: what differs, name -> (then, now): a run is refused, or with --overwrite does all.
    last_report: of the last run that had work to do; empty where there was none.
    """

    files: list[InputFile]
    new: list[str]
    changed: list[str]
    deleted: list[str]
    unfinished: list[str]
    rejected: list[RejectedFile]
    units: list[Unit]
    pending: list[Unit]
    stale: list[Entry]
    settings: dict[str, tuple[Any, Any]]
    last_report: dict[str, Any]

    @property
    def differs(self) -> bool:
        """Whether a run would change anything, or be refused."""
        parts = (self.new, self.changed, self.deleted, self.unfinished, self.stale, self.settings)
        return any(parts)

    @property
    def pending_rows(self) -> int:
        """Rows that a run would read."""
        return sum(unit.rows for unit in self.pending)

    def counts(self) -> dict[str, int]:
        """Return everything as numbers."""
        return {
            "files": len(self.files),
            "files_new": len(self.new),
            "files_changed": len(self.changed),
            "files_deleted": len(self.deleted),
            "files_unfinished": len(self.unfinished),
            "files_rejected": len(self.rejected),
            "bytes": sum(file.size for file in self.files),
            "rows": sum(unit.rows for unit in self.units),
            "rows_pending": self.pending_rows,
            "units": len(self.units),
            "units_committed": len(self.units) - len(self.pending),
            "units_pending": len(self.pending),
            "outputs_stale": len(self.stale),
        }


def describe_files(spec: ModelSpec) -> dict[str, Any]:
    """Return what of a model's provenance its files and its entry alone decide.

    What an `auto` dtype comes to is known only where the model runs.
    """
    directory = locate(spec)
    tokenizer = EmbeddingTokenizer(directory, spec.context, spec.prompt)
    known = {
        "checkpoint_sha256": hash_files(directory),
        "prompt": tokenizer.prompt,
        "context": tokenizer.context,
    }
    if spec.dtype != "auto":
        known["dtype"] = spec.dtype
    if spec.pooling is not None:
        known["head"] = [spec.pooling, spec.normalize]
    return known


def preview(job: EmbedJob, describe: Describe = describe_files) -> Preview:
    """Return what the job would do. describe: what is known of a model that is not loaded.

    Raises ConfigError and OutputMismatch as a run would.
    """
    check_ours(Location.parse(job.output))
    given = read_input(job)
    record = RunRecord(job.output, mend=False)
    differing = record.differences(describe_output(job)) | _model_differences(job, record, describe)
    before = (record.manifest or {}).get("settings", {})
    plan = make_plan(job, given, record, before, {})
    if differing:  # with --overwrite all is done again
        plan = replace(plan, pending=plan.units)
    new, changed, deleted = _compare(given.files, record)
    known = {*new, *changed}
    pending = dict.fromkeys(unit.file.name for unit in plan.pending)
    return Preview(
        files=given.files,
        new=new,
        changed=changed,
        deleted=deleted,
        unfinished=[] if differing else [name for name in pending if name not in known],
        rejected=given.rejected,
        units=plan.units,
        pending=plan.pending,
        stale=find_stale(plan, record),
        settings=differing,
        last_report=record.read_report() or {},
    )


def _model_differences(
    job: EmbedJob, record: RunRecord, describe: Describe
) -> dict[str, tuple[Any, Any]]:
    recorded = (record.manifest or {}).get("provenance", {}).get("embedding_provenance")
    if recorded is None:
        return {}
    return {
        f"model {key}": (recorded.get(key), now)
        for key, now in describe(job.model).items()
        if recorded.get(key) != now
    }


def _compare(files: list[InputFile], record: RunRecord) -> tuple[list[str], list[str], list[str]]:
    """Return the names of new, changed and deleted files, against those that the manifest has."""
    before = {
        file["name"]: [file["name"], file["size"], file["mtime_ns"]]
        for file in (record.manifest or {}).get("files", [])
    }
    now = {file.name: file_identity(file) for file in files}
    new = [name for name in now if name not in before]
    changed = [name for name, identity in now.items() if before.get(name, identity) != identity]
    return new, changed, [name for name in before if name not in now]
