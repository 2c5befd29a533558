"""The run's own records beside its output: lease, manifest, ledger, completion.

    OUT/<the input's tree>.parquet      data
    OUT/_dead_letters/<same names>      rows that were not written, and why
    OUT/_run/manifest.json              what the run is: settings and input files
    OUT/_run/ledger.jsonl               one line for each committed or removed unit
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
from pipelines.commit import DEAD_LETTERS, write_json
from pipelines.errors import OutputMismatch
from pipelines.plan import Unit
from pipelines.run_lease import MANIFEST, RUN
from pipelines.run_ledger import Entry, open_ledger

SCRATCH, SUCCESS = "_tmp", "_SUCCESS.json"


class RunRecord:
    """The records of the run in one output directory; used under its lease."""

    def __init__(self, output: str | os.PathLike[str] | Location) -> None:
        self.output = Location.parse(output)
        self._manifest = self.output.child(MANIFEST)
        self._ledger = open_ledger(self.output.child(RUN))
        self.manifest = self._read_manifest()
        self.entries = self._ledger.read()

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = json.loads(self._manifest.read_bytes())
        except ObjectNotFound:
            return None
        except ValueError as error:
            raise OutputMismatch(f"{self._manifest} is damaged: {error}") from None
        return manifest

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise OutputMismatch, naming what differs, where the run here was of another kind."""
        before = (self.manifest or {}).get("settings", settings)
        differing = [key for key in settings if before.get(key) != settings[key]]
        if differing:
            changes = "; ".join(
                f"{key} was {before.get(key)!r} and is now {settings[key]!r}" for key in differing
            )
            raise OutputMismatch(
                f"output {self.output} holds a run with other settings: {changes}. "
                "Choose another directory, or delete that run with --overwrite"
            )

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Record what the run is; readers may no longer take the output for complete."""
        self.output.child(SUCCESS).delete()
        write_json(self._manifest, manifest)
        self.manifest = manifest

    def is_noted(self, output: str, key: str) -> bool:
        """Say whether the ledger has this unit."""
        entry = self.entries.get(output)
        return entry is not None and entry.key == key

    def pending(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units that the ledger does not have, or whose file is not there, whole."""
        noted = [unit for unit in units if self.is_noted(unit.output, unit.key)]
        sizes = {stat.name: stat.size for stat in self.output.list()} if noted else {}
        whole = {
            unit.output for unit in noted
            if self.entries[unit.output].bytes in (None, sizes.get(unit.output))
        }  # fmt: skip
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
        """Delete what the run here wrote, and no other file."""
        self.output.child(SUCCESS).delete()
        for name in list(self.entries):
            self.remove(name)
        self.sweep()
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

    def write_success(self, summary: dict[str, Any]) -> None:
        """Mark the output complete."""
        write_json(self.output.child(SUCCESS), summary)
