"""The run's own records beside its output: lease, manifest, ledger, completion.

    OUT/<the input's tree>.parquet      data
    OUT/_dead_letters/<same names>      rows that were not written, and why
    OUT/_run/manifest.json              what the run is: settings and input files
    OUT/_run/ledger.jsonl               one line for each committed or removed unit
    OUT/_run/sinks/*/ledger.jsonl       what each sink was fed; outlives --overwrite, as its rows do
    OUT/_run/tombstones.jsonl           rows that were there once: pipelines/tombstones.py
    OUT/_run/report.json, report.html   what the last run that had work to do did
    OUT/_run/lease                      held, with flock, by the process at work
    OUT/_tmp/<run>/                     files not yet committed
    OUT/_SUCCESS.json                   written last

In an object store the ledger is OUT/_run/ledger/*.jsonl and the lease OUT/_run/claims/<run>; what
is not committed yet is on the disk of whoever makes it. Readers of parquet directories skip names
that begin with `_`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from omai_ray.storage import Location, ObjectNotFound
from pipelines.commit import DEAD_LETTERS, write_json, write_text
from pipelines.errors import OutputMismatch
from pipelines.plan import Unit
from pipelines.run_lease import MANIFEST, RUN
from pipelines.run_ledger import Entry, open_ledger

SCRATCH, SUCCESS = "_tmp", "_SUCCESS.json"
REPORT = f"{RUN}/report.json"
REPORT_PAGE = f"{RUN}/report.html"


class RunRecord:
    """The records of the run in one output directory; used under its lease.

    mend: tidy up what is read; False leaves all as it is, and needs no lease.
    """

    def __init__(self, output: str | os.PathLike[str] | Location, *, mend: bool = True) -> None:
        self.output = Location.parse(output)
        self._manifest = self.output.child(MANIFEST)
        self._ledger = open_ledger(self.output.child(RUN))
        self.manifest = self._read_manifest()
        self.entries = self._ledger.read(mend=mend)

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = json.loads(self._manifest.read_bytes())
        except ObjectNotFound:
            return None
        except ValueError as error:
            raise OutputMismatch(f"{self._manifest} is damaged: {error}") from None
        return manifest

    def differences(self, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the settings that the run here had otherwise: name -> (then, now)."""
        before = (self.manifest or {}).get("settings", settings)
        return {
            key: (before.get(key), now) for key, now in settings.items() if before.get(key) != now
        }

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise OutputMismatch, naming what differs, where the run here was of another kind."""
        differing = self.differences(settings)
        if differing:
            changes = "; ".join(
                f"{key} was {then!r} and is now {now!r}" for key, (then, now) in differing.items()
            )
            raise OutputMismatch(
                f"output {self.output} holds a run with other settings: {changes}. "
                "Choose another directory, or delete that run with --overwrite"
            )

    def reopen(self) -> None:
        """Tell readers that they may no longer take the output for complete."""
        self.output.child(SUCCESS).delete()

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Record what the run is; readers may no longer take the output for complete."""
        self.reopen()
        write_json(self._manifest, manifest)
        self.manifest = manifest

    def is_noted(self, output: str, key: str) -> bool:
        """Say whether the ledger has this unit."""
        entry = self.entries.get(output)
        return entry is not None and entry.key == key

    def has_rejected(self, output: str, key: str) -> bool:
        """Say whether an unreadable file is noted, and its dead letter there."""
        return self.is_noted(output, key) and self.output.child(f"{DEAD_LETTERS}/{output}").exists()

    def pending(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units that the ledger does not have, or whose files are not there, whole."""
        noted = [unit for unit in units if self.is_noted(unit.output, unit.key)]
        sizes = {stat.name: stat.size for stat in self.output.list()} if noted else {}
        whole = {u.output for u in noted if _is_whole(self.entries[u.output], sizes)}
        return [unit for unit in units if unit.output not in whole]

    def append(self, entry: Entry) -> None:
        """Add an entry to the ledger."""
        self._ledger.append(entry)
        if entry.removed:
            self.entries.pop(entry.output, None)
        else:
            self.entries[entry.output] = entry

    def remove(self, output: str) -> None:
        """Take a unit that the input no longer has out of the output."""
        self.output.child(output).delete()
        self.output.child(f"{DEAD_LETTERS}/{output}").delete()
        self.append(Entry(output, key="", removed=True))

    def clear(self) -> None:
        """Forget the run here, whose units are removed already."""
        self._delete_dead_letters()
        self._ledger.delete()
        self._manifest.delete()
        self.manifest, self.entries = None, {}

    def _delete_dead_letters(self) -> None:
        place = self.output.child(DEAD_LETTERS)
        if place.is_local:
            shutil.rmtree(place.local_path, ignore_errors=True)
            return
        for stat in place.list():
            place.child(stat.name).delete()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a directory for files in the making; earlier runs' leftovers are swept.

        A writer that outlives its run finds the directory gone, and can commit nothing. What was
        noted meanwhile is durable afterwards.
        """
        try:
            if self.output.is_local:
                self.sweep()
                directory = self.output.local_path / SCRATCH / uuid4().hex
                directory.mkdir(parents=True)
                yield directory
            else:
                with TemporaryDirectory(prefix="omai-bulk-") as temporary:
                    yield Path(temporary)
        finally:
            self.sweep()
            self._ledger.flush()

    def sweep(self) -> None:
        """Delete uncommitted files."""
        if self.output.is_local:
            shutil.rmtree(self.output.local_path / SCRATCH, ignore_errors=True)

    def write_report(self, summary: dict[str, Any], page: str) -> None:
        """Keep what the last run that had work to do did."""
        write_json(self.output.child(REPORT), summary)
        write_text(self.output.child(REPORT_PAGE), page)

    def read_report(self) -> dict[str, Any] | None:
        """Return what `write_report` kept, None where there is nothing."""
        place = self.output.child(REPORT)
        try:
            report: dict[str, Any] = json.loads(place.read_bytes())
        except ObjectNotFound:
            return None
        except ValueError as error:
            raise OutputMismatch(f"{place} is damaged: {error}") from None
        return report

    def write_success(self, summary: dict[str, Any]) -> None:
        """Mark the output complete."""
        write_json(self.output.child(SUCCESS), summary)


def _is_whole(entry: Entry, sizes: Mapping[str, int]) -> bool:
    """Say whether an entry's files are there. sizes: of all files, by name."""
    if (entry.dead or entry.dead_files) and f"{DEAD_LETTERS}/{entry.output}" not in sizes:
        return False
    return entry.bytes in (None, sizes.get(entry.output))
