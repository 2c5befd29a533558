"""The table of faults in docs/reliability.md, and the tests that show its rows."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.*?) \|$", re.MULTILINE)
_MARK = re.compile(r"mark\.fault\(([\d, ]+)\)")


@dataclass(frozen=True)
class Row:
    """A fault, when its test passes, and the files of tests that the docs name for it."""

    number: int
    fault: str
    passes: str
    files: frozenset[str]


def rows() -> list[Row]:
    """Return the table of the docs."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    return [
        Row(int(number), fault, passes, frozenset(re.findall(r"`(tests/[^`]+)`", shown)))
        for number, fault, passes, shown in _ROW.findall(text)
    ]


def marked_files() -> dict[int, set[str]]:
    """Return, for each row, the files with a test marked for it."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for given in _MARK.findall(path.read_text(encoding="utf-8")):
            for number in given.split(","):
                found[int(number)].add(path.relative_to(ROOT).as_posix())
    return dict(found)


def outcome_of_rows(outcomes: Iterable[tuple[int, str]]) -> list[str]:
    """Return a line for each row: failed if any of its tests is, passed if any ran and none failed.

    outcomes: a row and "passed", "failed", "error" or "skipped", for each report of a test.
    """
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for number, outcome in outcomes:
        counts[number][outcome] += 1
    return [_line(row, counts[row.number]) for row in rows()]


def _line(row: Row, counts: Counter[str]) -> str:
    if counts["failed"] or counts["error"]:
        outcome = "failed"
    elif counts["passed"]:
        outcome = "passed"
    else:
        outcome = "skipped" if counts["skipped"] else "not run"
    told = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()) if number)
    return f"{row.number:>2} {outcome:<7} {row.fault}" + (f" ({told})" if told else "")
