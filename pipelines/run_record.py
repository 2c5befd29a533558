"""The run's own records beside its output: lease, manifest, ledger, completion.

    OUT/<the input's tree>.parquet      data
    OUT/_dead_letters/<same names>      rows that were not written, and why
    OUT/_run/manifest.json              what the run is: settings and input files
    OUT/_run/ledger.jsonl               one line for each committed or removed unit
    OUT/_run/tombstones.jsonl           rows that were there once: pipelines/tombstones.py
    OUT/_run/report.json, report.html   what the last run that had work to do did
    OUT/_run/lease                      held, with flock, by the process at work
    OUT/_tmp/<run>/                     files not yet committed
    OUT/_SUCCESS.json                   written last

Readers of parquet directories skip names that begin with `_`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from omai_ray.errors import ConfigError
from pipelines.commit import DEAD_LETTERS, sync, write_json, write_text
from pipelines.errors import OutputInUse, OutputMismatch

RUN, SCRATCH, SUCCESS = "_run", "_tmp", "_SUCCESS.json"
REPORT = "report.json"


@dataclass(frozen=True)
class Entry:
    """A ledger line: what stands in the output under a name.

    removed: nothing does any more. dead_files: 1 where a whole input file was dead-lettered.
    source, first_row: whose rows they are: the input file's name, and from which row on.
    bytes, sha256: of the data file; None and empty where there is none.
    """

    output: str
    key: str
    source: str = ""
    first_row: int = 0
    rows: int = 0
    written: int = 0
    dead: int = 0
    truncated: int = 0
    tokens: int = 0
    bytes: int | None = None
    sha256: str = ""
    reasons: dict[str, int] = field(default_factory=dict)
    dead_files: int = 0
    removed: bool = False


@contextmanager
def lease(output: Path) -> Iterator[None]:
    """Be the only process at work in an output directory, which is made if need be.

    The lock is the kernel's, so it ends with the process, however that dies. Raises OutputInUse
    naming the holder, OutputMismatch for a directory with other content, ConfigError for one
    that cannot be made.
    """
    check_ours(output)
    try:
        (output / RUN).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / RUN / "lease", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"output {output}: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            raise OutputInUse(
                f"output {output} is in use by another run ({holder}); wait for it to end"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def check_ours(output: Path) -> None:
    """Raise ConfigError for what is no directory, OutputMismatch for one with other content."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is not a directory")
    if not output.is_dir() or (output / RUN / "manifest.json").exists():
        return
    foreign = sorted(path.name for path in output.iterdir() if path.name != RUN)
    if foreign:
        raise OutputMismatch(
            f"output {output} holds files that no run of this kind wrote ({foreign[0]}); "
            "choose an empty directory, or one that does not exist"
        )


class RunRecord:
    """The records of the run in one output directory; used under its lease.

    mend: drop a torn last line; False leaves all as it is, and needs no lease.
    """

    def __init__(self, output: Path, *, mend: bool = True) -> None:
        self.output = output
        self._mend = mend
        self._manifest_path = output / RUN / "manifest.json"
        self._ledger_path = output / RUN / "ledger.jsonl"
        self.manifest = self._read_manifest()
        self.entries = self._read_ledger()

    def _read_manifest(self) -> dict[str, Any] | None:
        if not self._manifest_path.exists():
            return None
        try:
            manifest: dict[str, Any] = json.loads(self._manifest_path.read_text("utf-8"))
        except ValueError as error:
            raise OutputMismatch(f"{self._manifest_path} is damaged: {error}") from None
        return manifest

    def _read_ledger(self) -> dict[str, Entry]:
        """Return the last entry of each name; a torn last line was never committed: cut it."""
        if not self._ledger_path.exists():
            return {}
        content = self._ledger_path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content) and self._mend:
            os.truncate(self._ledger_path, whole)
        try:
            lines = [Entry(**json.loads(line)) for line in content[:whole].splitlines()]
        except (ValueError, TypeError) as error:
            raise OutputMismatch(f"{self._ledger_path} is damaged: {error}") from None
        latest = {entry.output: entry for entry in lines}
        return {name: entry for name, entry in latest.items() if not entry.removed}

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

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Record what the run is; readers may no longer take the output for complete."""
        (self.output / SUCCESS).unlink(missing_ok=True)
        write_json(self._manifest_path, manifest)
        self.manifest = manifest

    def is_committed(self, output: str, key: str) -> bool:
        """Say whether the ledger has this unit, and its data file is there, whole."""
        entry = self.entries.get(output)
        if entry is None or entry.key != key:
            return False
        if entry.bytes is None:
            return True
        path = self.output / output
        return path.is_file() and path.stat().st_size == entry.bytes

    def append(self, entry: Entry) -> None:
        """Add a line to the ledger, on the disk when this returns."""
        with self._ledger_path.open("ab") as file:
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if entry.removed:
            self.entries.pop(entry.output, None)
        else:
            self.entries[entry.output] = entry

    def remove(self, output: str) -> None:
        """Take a unit that the input no longer has out of the output."""
        (self.output / output).unlink(missing_ok=True)
        (self.output / DEAD_LETTERS / output).unlink(missing_ok=True)
        self.append(Entry(output, key="", removed=True))

    def clear(self) -> None:
        """Delete what the run here wrote, and no other file."""
        (self.output / SUCCESS).unlink(missing_ok=True)
        for name in list(self.entries):
            self.remove(name)
        self.sweep()
        shutil.rmtree(self.output / DEAD_LETTERS, ignore_errors=True)
        self._ledger_path.unlink(missing_ok=True)
        self._manifest_path.unlink(missing_ok=True)
        self.manifest, self.entries = None, {}

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a directory for files in the making; earlier runs' leftovers are swept.

        A writer that outlives its run finds the directory gone, and can commit nothing.
        """
        self.sweep()
        directory = self.output / SCRATCH / uuid4().hex
        directory.mkdir(parents=True)
        try:
            yield directory
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Delete uncommitted files."""
        shutil.rmtree(self.output / SCRATCH, ignore_errors=True)

    def write_report(self, summary: dict[str, Any], page: str) -> None:
        """Keep what the last run that had work to do did."""
        write_json(self.output / RUN / REPORT, summary)
        write_text(self.output / RUN / "report.html", page)

    def read_report(self) -> dict[str, Any] | None:
        """Return what `write_report` kept, None where there is nothing."""
        path = self.output / RUN / REPORT
        try:
            report: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputMismatch(f"{path} is damaged: {error}") from None
        return report

    def write_success(self, summary: dict[str, Any]) -> None:
        """Mark the output complete."""
        sync(self._ledger_path)
        write_json(self.output / SUCCESS, summary)
