"""Which rows an output does not hold any more, so that what was made of them can go too.

    OUT/_run/tombstones.jsonl    a line for each output file that was removed or replaced

A file that is replaced has a tombstone beside its new rows: of each name the latest is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from omai_ray.storage import ObjectNotFound
from pipelines.commit import write_text
from pipelines.errors import OutputMismatch
from pipelines.run_lease import RUN
from pipelines.run_ledger import Entry
from pipelines.run_record import RunRecord

TOMBSTONES = f"{RUN}/tombstones.jsonl"
Reason = Literal["removed", "replaced"]


@dataclass(frozen=True)
class Tombstone:
    """Rows first_row to first_row + rows of an input file, which `output` held.

    source: the input file's name. at: when, ISO 8601 in UTC. removed: nothing stands under that
    name any more; replaced: what the input has there now.
    """

    output: str
    source: str
    first_row: int
    rows: int
    reason: Reason
    at: str


def read_tombstones(record: RunRecord) -> list[Tombstone]:
    """Return the tombstones of an output, by its files' names."""
    place = record.output.child(TOMBSTONES)
    try:
        return [Tombstone(**json.loads(line)) for line in place.read_bytes().splitlines()]
    except ObjectNotFound:
        return []
    except (ValueError, TypeError) as error:
        raise OutputMismatch(f"{place} is damaged: {error}") from None


def bury(record: RunRecord, entries: Iterable[Entry], reason: Reason) -> None:
    """Note that these rows go. It is done before they do, so that none can go unnoted."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    new = {
        entry.output: Tombstone(entry.output, entry.source, entry.first_row, entry.rows, reason, at)
        for entry in entries
        if entry.rows
    }
    if not new:
        return
    kept = {stone.output: stone for stone in read_tombstones(record)} | new
    lines = (json.dumps(asdict(kept[name])) + "\n" for name in sorted(kept))
    write_text(record.output.child(TOMBSTONES), "".join(lines))
