"""The list of what a run has committed: lines appended to a file, or small objects of lines."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from omai_ray.storage import Location, StorageError
from pipelines.errors import OutputMismatch

SEGMENT_ENTRIES = 256
SEGMENT_S = 2.0
THREADS = 32


@dataclass(frozen=True)
class Entry:
    """A ledger line: what stands in the output under a name.

    removed: nothing does any more. dead_files: 1 where a whole input file was dead-lettered.
    bytes: size of the data file; None where there is none.
    """

    output: str
    key: str
    rows: int = 0
    written: int = 0
    dead: int = 0
    truncated: int = 0
    tokens: int = 0
    bytes: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    dead_files: int = 0
    removed: bool = False


class Ledger(Protocol):
    """Where entries are kept, in the order in which they were appended."""

    def read(self) -> dict[str, Entry]:
        """Return the last entry of each name that was not removed. Raises OutputMismatch."""
        ...

    def append(self, entry: Entry) -> None:
        """Add an entry."""
        ...

    def flush(self) -> None:
        """Make every entry durable."""
        ...

    def delete(self) -> None:
        """Forget all entries."""
        ...


def open_ledger(run: Location) -> Ledger:
    """Return the ledger in a run's directory."""
    if run.is_local:
        return FileLedger(run.local_path / "ledger.jsonl")
    return SegmentLedger(run.child("ledger"))


class FileLedger:
    """A file on a local disk; each line is on the disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Entry]:
        """Return what stands; a torn last line was never committed: cut it."""
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._path, whole)
        return _latest(_parse(content[:whole], str(self._path)))

    def append(self, entry: Entry) -> None:
        """Add a line."""
        with self._path.open("ab") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())

    def flush(self) -> None:
        """Do nothing: every line is on the disk already."""

    def delete(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


class SegmentLedger:
    """Numbered objects, each with some lines; the newest snapshot stands for all before it.

    An object store appends to nothing, so lines that come close together share an object. Those
    not yet written when a process dies are of its last SEGMENT_S seconds of results; their units
    are done again, to the same bytes.
    """

    def __init__(self, place: Location, clock: Callable[[], float] = time.monotonic) -> None:
        self._place, self._clock = place, clock
        self._next = 0
        self._pending: list[Entry] = []
        self._flushed_s = float("-inf")
        self._late: threading.Timer | None = None
        self._lock = threading.Lock()

    def read(self) -> dict[str, Entry]:
        """Return what stands; many segments become one snapshot."""
        names = [stat.name for stat in self._place.list(recursive=False)]
        self._next = 1 + max((int(name.partition("-")[0]) for name in names), default=-1)
        snapshots = [i for i, name in enumerate(names) if name.endswith("-snapshot.jsonl")]
        current = names[snapshots[-1] :] if snapshots else names
        with ThreadPoolExecutor(THREADS) as pool:
            contents = list(pool.map(lambda name: self._place.child(name).read_bytes(), current))
        pairs = zip(current, contents, strict=True)
        entries = _latest(e for name, c in pairs for e in _parse(c, str(self._place.child(name))))
        if len(names) > 1:
            self._write(entries.values(), "snapshot")
            self._remove(names)
        return entries

    def append(self, entry: Entry) -> None:
        """Add a line; it is in the store at once, or with those that come soon after."""
        with self._lock:
            self._pending.append(entry)
            waited_s = self._clock() - self._flushed_s
            if len(self._pending) >= SEGMENT_ENTRIES or waited_s >= SEGMENT_S:
                self._flush()
            elif self._late is None:
                self._late = threading.Timer(SEGMENT_S, self._flush_late)
                self._late.daemon = True
                self._late.start()

    def flush(self) -> None:
        """Write what waits as one object."""
        with self._lock:
            self._flush()

    def delete(self) -> None:
        """Remove every segment."""
        with self._lock:
            self._pending = []
            self._flush()
        self._remove([stat.name for stat in self._place.list(recursive=False)])

    def _flush(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if self._pending:
            self._write(self._pending, uuid4().hex[:8])
            self._pending = []
            self._flushed_s = self._clock()

    def _flush_late(self) -> None:
        """Write what no later entry took along; a failure is the next write's to report."""
        with suppress(StorageError):
            self.flush()

    def _write(self, entries: Iterable[Entry], label: str) -> None:
        name = f"{self._next:012d}-{label}.jsonl"
        self._place.child(name).write_bytes(b"".join(_line(entry) for entry in entries))
        self._next += 1

    def _remove(self, names: list[str]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self._place.child(name).delete(), names))


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry)).encode() + b"\n"


def _parse(content: bytes, name: str) -> list[Entry]:
    try:
        return [Entry(**json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError) as error:
        raise OutputMismatch(f"{name} is damaged: {error}") from None


def _latest(entries: Iterable[Entry]) -> dict[str, Entry]:
    latest = {entry.output: entry for entry in entries}
    return {name: entry for name, entry in latest.items() if not entry.removed}
