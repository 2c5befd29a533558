"""Find what a run committed and could not note any more, as it was killed in between."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.commit import DEAD_LETTERS
from pipelines.plan import possible_sources
from pipelines.run_ledger import Entry
from pipelines.run_record import RunRecord


def find_strays(record: RunRecord, planned: Collection[str]) -> list[Entry]:
    """Return files of the manifest's run that the ledger does not have, as if it had them.

    planned: names that are to be written again. A file is the run's where an input file of its
    manifest explains the name, and a data file's footer names that file and the run's model.
    """
    manifest = record.manifest or {}
    sources = {file["name"] for file in manifest.get("files", [])}
    fingerprint = manifest.get("settings", {}).get("embedding_fingerprint")
    names = [stat.name for stat in record.output.list()] if sources else []
    letters = {name.removeprefix(f"{DEAD_LETTERS}/") for name in names if _is_dead_letter(name)}
    data = {name for name in names if not _is_dead_letter(name)}
    found = []
    for name in sorted(data | letters):
        of = sources & possible_sources(name)
        if not of or name in planned or name in record.entries:
            continue
        entry = _read(record, name, of, fingerprint) if name in data else Entry(name, key="")
        if entry is not None:
            found.append(entry)
    return found


def _is_dead_letter(name: str) -> bool:
    return name.startswith(f"{DEAD_LETTERS}/")


def _read(
    record: RunRecord, name: str, sources: Collection[str], fingerprint: str | None
) -> Entry | None:
    """Return whose rows a data file has; None where the run did not write it."""
    try:
        with record.output.child(name).open_input() as content:
            facts = pq.read_schema(content).metadata or {}
    except (pa.ArrowException, OSError):  # no parquet file, and what is committed is whole
        return None
    source = facts.get(b"omai.source_file", b"").decode(errors="replace")
    if (
        source not in sources
        or facts.get(b"omai.embedding_fingerprint") != str(fingerprint).encode()
    ):
        return None
    first, end = map(int, facts[b"omai.source_rows"].split(b":"))
    return Entry(name, key="", source=source, first_row=first, rows=end - first)
