"""What a job did, counted and timed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.run_ledger import Entry
from pipelines.unit import UnitResult


@dataclass
class Report:
    """A job's outcome.

    Rows, tokens and durations without `total` are of this run; totals are of the whole output,
    earlier runs' units included. read_s to write_s are summed over actors. run_s is from the
    first unit's start to the last one's end; startup_s is what came before.
    """

    output: str
    model: str
    fingerprint: str
    max_dead: float
    int8_cosine: str = ""
    files: int = 0
    files_dead: int = 0
    units_done: int = 0
    units_skipped: int = 0
    units_removed: int = 0
    rows_read: int = 0
    rows_written: int = 0
    rows_dead: int = 0
    rows_truncated: int = 0
    tokens: int = 0
    total_rows: int = 0
    total_rows_written: int = 0
    total_rows_dead: int = 0
    dead_reasons: dict[str, int] = field(default_factory=dict)
    actors: int = 0
    startup_s: float = 0.0
    run_s: float = 0.0
    read_s: float = 0.0
    tokenise_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0

    @property
    def rows_per_s(self) -> float:
        """Rows a second of this run, after start-up."""
        return self.rows_read / self.run_s if self.run_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of this run, after start-up."""
        return self.tokens / self.run_s if self.run_s else 0.0

    @property
    def dead_fraction(self) -> float:
        """Share of rows that are dead-lettered, or of files, whose rows nobody can count."""
        rows = self.total_rows_dead / self.total_rows if self.total_rows else 0.0
        return max(rows, self.files_dead / self.files if self.files else 0.0)

    @property
    def ok(self) -> bool:
        """Whether no more was dead-lettered than the job allows."""
        return self.dead_fraction <= self.max_dead

    def add(self, result: UnitResult) -> None:
        """Count a unit of this run."""
        self.units_done += 1
        self.rows_read += result.rows
        self.rows_written += result.written
        self.rows_dead += result.dead
        self.rows_truncated += result.truncated
        self.tokens += result.tokens
        self.read_s += result.read_s
        self.tokenise_s += result.tokenise_s
        self.forward_s += result.forward_s
        self.write_s += result.write_s

    def total(self, entries: Iterable[Entry]) -> None:
        """Sum up the ledger: what the whole output holds."""
        reasons: Counter[str] = Counter()
        for entry in entries:
            self.total_rows += entry.rows
            self.total_rows_written += entry.written
            self.total_rows_dead += entry.dead
            self.files_dead += entry.dead_files
            reasons.update(entry.reasons)
        self.dead_reasons = dict(sorted(reasons.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return every field and rate, durations rounded to a millisecond."""
        values = asdict(self) | {
            "rows_per_s": self.rows_per_s,
            "tokens_per_s": self.tokens_per_s,
            "dead_fraction": self.dead_fraction,
            "ok": self.ok,
        }
        return {
            key: round(value, 6 if key == "dead_fraction" else 3)
            if isinstance(value, float) and key != "max_dead"
            else value
            for key, value in values.items()
        }

    def to_json(self) -> str:
        """Return one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return a table for people."""
        lines = [
            ("output", self.output),
            ("model", f"{self.model} ({self.fingerprint[:12]}){self._int8()}"),
            ("rows read", f"{self.rows_read:,}"),
            ("written", f"{self.rows_written:,} ({self.rows_truncated:,} cut to the context)"),
            ("dead-lettered", f"{self.rows_dead:,}{self._reasons()}"),
            ("tokens", f"{self.tokens:,}"),
            ("speed", f"{self.rows_per_s:,.1f} rows/s, {self.tokens_per_s:,.0f} tokens/s"),
            ("time", f"{self.startup_s:.1f} s to start, {self.run_s:.1f} s to run"),
            ("in actors", self._stages()),
            ("units", self._units()),
            ("whole output", f"{self.total_rows_written:,} of {self.total_rows:,} rows"),
        ]
        if self.files_dead:
            lines.append(("unreadable", f"{self.files_dead:,} of {self.files:,} files"))
        width = max(len(label) for label, _ in lines)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)

    def _int8(self) -> str:
        return f", in int8: cosine to float32 {self.int8_cosine}" if self.int8_cosine else ""

    def _reasons(self) -> str:
        if not self.dead_reasons:
            return ""
        listed = ", ".join(f"{name} {count:,}" for name, count in self.dead_reasons.items())
        return f" (whole output: {listed})"

    def _stages(self) -> str:
        return (
            f"{self.actors} actors: read {self.read_s:.1f} s, tokenise {self.tokenise_s:.1f} s, "
            f"forward {self.forward_s:.1f} s, write {self.write_s:.1f} s"
        )

    def _units(self) -> str:
        removed = f", {self.units_removed:,} removed" if self.units_removed else ""
        return f"{self.units_done:,} done, {self.units_skipped:,} already committed{removed}"
