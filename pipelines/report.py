"""What a job did, counted and timed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.run_ledger import Entry
from pipelines.timeline import Timeline
from pipelines.unit import LENGTH_BINS, UnitResult

_EXACT = {"max_dead", "price_per_hour", "cost_per_million_tokens"}
_SHARES = {"dead_fraction", "padding_waste"}
STAGES = ("read_s", "tokenise_s", "forward_s", "write_s")


@dataclass
class WorkerTimes:
    """What one actor did. started, ended: of its first and last unit, as time.time()."""

    units: int = 0
    rows: int = 0
    read_s: float = 0.0
    tokenise_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0
    started: float = math.inf
    ended: float = 0.0

    def add(self, result: UnitResult) -> None:
        """Count a unit."""
        self.units += 1
        self.rows += result.rows
        for stage in STAGES:
            setattr(self, stage, getattr(self, stage) + getattr(result, stage))
        self.started = min(self.started, result.started)
        self.ended = max(self.ended, result.ended)


@dataclass
class Report:
    """A job's outcome.

    Rows, tokens and durations without `total` are of this run; totals are of the whole output,
    earlier runs' units included. Rows are the input's; output_rows are more where texts are cut
    into chunks. rows_deduplicated: texts, or chunks, that took the vector of an identical one;
    their tokens count. read_s to write_s are summed over actors. run_s is from the first unit's
    start to the last one's end; startup_s is what came before. forward_tokens and computed_tokens
    are what the engines were run on, without and with padding. lengths: texts, or chunks, by their
    tokens, the n-th those of 2^n up to 2^(n+1). price_per_hour: of an actor. sink_rows: those that
    this run fed to its sink.
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
    rows_deduplicated: int = 0
    output_rows: int = 0
    tokens: int = 0
    forward_tokens: int = 0
    computed_tokens: int = 0
    lengths: list[int] = field(default_factory=lambda: [0] * LENGTH_BINS)
    total_rows: int = 0
    total_rows_written: int = 0
    total_output_rows: int = 0
    total_rows_dead: int = 0
    dead_reasons: dict[str, int] = field(default_factory=dict)
    actors: int = 0
    startup_s: float = 0.0
    run_s: float = 0.0
    read_s: float = 0.0
    tokenise_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0
    sink: str = ""
    sink_rows: int = 0
    price_per_hour: float | None = None
    workers: dict[str, WorkerTimes] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def rows_per_s(self) -> float:
        """Rows a second of this run, after start-up."""
        return self.rows_read / self.run_s if self.run_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of this run, after start-up."""
        return self.tokens / self.run_s if self.run_s else 0.0

    @property
    def actor_s(self) -> float:
        """Seconds of actors, each from its first unit's start to its last one's end."""
        return sum(worker.ended - worker.started for worker in self.workers.values())

    @property
    def tokens_per_actor_s(self) -> float:
        """Tokens a second of one actor."""
        return self.tokens / self.actor_s if self.actor_s else 0.0

    @property
    def padding_waste(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.forward_tokens / self.computed_tokens if self.computed_tokens else 0.0

    @property
    def cost_per_million_tokens(self) -> float | None:
        """What a million tokens cost at the price, None without a price or a token."""
        if self.price_per_hour is None:
            return None
        return cost_per_million(self.price_per_hour, self.tokens_per_actor_s)

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
        self.rows_deduplicated += result.deduplicated
        self.output_rows += result.output_rows
        self.tokens += result.tokens
        self.forward_tokens += result.forward_tokens
        self.computed_tokens += result.computed_tokens
        self.lengths = [a + b for a, b in zip(self.lengths, result.lengths, strict=True)]
        for stage in STAGES:
            setattr(self, stage, getattr(self, stage) + getattr(result, stage))
        self.workers.setdefault(result.worker, WorkerTimes()).add(result)

    def total(self, entries: Iterable[Entry]) -> None:
        """Sum up the ledger: what the whole output holds."""
        reasons: Counter[str] = Counter()
        for entry in entries:
            self.total_rows += entry.rows
            self.total_rows_written += entry.written
            self.total_output_rows += entry.output_rows
            self.total_rows_dead += entry.dead
            self.files_dead += entry.dead_files
            reasons.update(entry.reasons)
        self.dead_reasons = dict(sorted(reasons.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return every field and rate, durations rounded to a millisecond.

        The timeline is left to the page: it is long.
        """
        values = asdict(self) | {
            "rows_per_s": self.rows_per_s,
            "tokens_per_s": self.tokens_per_s,
            "actor_s": self.actor_s,
            "tokens_per_actor_s": self.tokens_per_actor_s,
            "replicas_used": len(self.workers),
            "padding_waste": self.padding_waste,
            "cost_per_million_tokens": self.cost_per_million_tokens,
            "dead_fraction": self.dead_fraction,
            "ok": self.ok,
        }
        del values["timeline"]
        values["workers"] = {
            name: {key: _rounded(key, value) for key, value in asdict(times).items()}
            for name, times in self.workers.items()
        }
        return {key: _rounded(key, value) for key, value in values.items()}

    def to_json(self) -> str:
        """Return one JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """Return a table for people."""
        lines = [
            ("output", self.output),
            ("model", f"{self.model} ({self.fingerprint[:12]}){self._int8()}"),
            ("rows read", f"{self.rows_read:,}"),
            ("written", f"{self.rows_written:,}{self._written()}"),
            ("dead-lettered", f"{self.rows_dead:,}{self._reasons()}"),
            ("tokens", f"{self.tokens:,} ({self.padding_waste:.1%} padding beside them)"),
            ("speed", f"{self.rows_per_s:,.1f} rows/s, {self.tokens_per_s:,.0f} tokens/s"),
            ("time", f"{self.startup_s:.1f} s to start, {self.run_s:.1f} s to run"),
            ("in actors", self._stages()),
            ("units", self._units()),
            ("whole output", f"{self.total_rows_written:,} of {self.total_rows:,} rows"),
        ]
        if self.cost_per_million_tokens is not None:
            lines.append(("cost", f"{self.cost_per_million_tokens:.4g} a million tokens"))
        if self.files_dead:
            lines.append(("unreadable", f"{self.files_dead:,} of {self.files:,} files"))
        if self.sink:
            lines.append(("sink", f"{self.sink}: {self.sink_rows:,} rows fed"))
        width = max(len(label) for label, _ in lines)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)

    def _int8(self) -> str:
        return f", in int8: cosine to float32 {self.int8_cosine}" if self.int8_cosine else ""

    def _written(self) -> str:
        chunks = f" in {self.output_rows:,} chunks" if self.output_rows > self.rows_written else ""
        known = f", {self.rows_deduplicated:,} identical" if self.rows_deduplicated else ""
        return f"{chunks} ({self.rows_truncated:,} cut to the context{known})"

    def _reasons(self) -> str:
        if not self.dead_reasons:
            return ""
        listed = ", ".join(f"{name} {count:,}" for name, count in self.dead_reasons.items())
        return f" (whole output: {listed})"

    def _stages(self) -> str:
        return (
            f"{len(self.workers)} actors: read {self.read_s:.1f} s, tokenise "
            f"{self.tokenise_s:.1f} s, forward {self.forward_s:.1f} s, write {self.write_s:.1f} s"
        )

    def _units(self) -> str:
        removed = f", {self.units_removed:,} removed" if self.units_removed else ""
        return f"{self.units_done:,} done, {self.units_skipped:,} already committed{removed}"


def cost_per_million(price_per_hour: float, tokens_per_s: float) -> float | None:
    """Return what a million tokens cost at an actor's price and speed; None without a speed."""
    return price_per_hour / 3600 / tokens_per_s * 1e6 if tokens_per_s else None


def _rounded(key: str, value: Any) -> Any:
    if not isinstance(value, float) or key in _EXACT:
        return value
    return round(value, 6 if key in _SHARES else 3)
