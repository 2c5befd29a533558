"""Seven benchmarks on this machine's CPU, one after the other, and their figures in one place.

`python benchmarks/all.py [--quick] [--only NAME …]` (`make bench [QUICK=1]`) runs embedding, chat,
gateway, quota, bulk, batch and autoscaling, takes the last line of JSON of each, and writes
RESULTS/<date>-<hardware>.json, and a table of the ratios beside it, .md; with --only, the names
are in the files' names. Most ratios are of rates: better when high. Those to the optimum, to
Serve's default and to the bare forward, and `…_ratio`, are of hours or times: better when low.
One that fails does not end the others: it is named in both files, and the status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("embedding", "chat", "gateway", "quota", "bulk", "batch", "autoscaling")
RATIO = re.compile(r"(^|[._])vs_|_ratio$")
LOW = re.compile(r"vs_(optimum|serve_default|bare_forward)$|_ratio$")
"""Ratios of hours or times, not of rates."""

Figures = dict[str, Any]


class BenchmarkFailed(Exception):
    """A benchmark that ended with another status than 0, or without its line of JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter runs of each")
    parser.add_argument(
        "--only", choices=NAMES, action="append", help="a benchmark; may be repeated"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--hardware", default=hardware(), help="default: %(default)s")
    options = parser.parse_args(argv)
    report = run_all(options.only or NAMES, options.quick, ROOT / "benchmarks")
    report = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": options.hardware,
        "only": list(dict.fromkeys(options.only or ())),
        **report,
    }
    for path in write(report, options.results):
        print(path)
    return 1 if report["failed"] else 0


def run_all(names: Sequence[str], quick: bool, programs: Path) -> Figures:
    """Run the benchmarks' programs in a directory; return their figures and failures by name."""
    report: Figures = {"quick": quick, "figures": {}, "failed": {}}
    for name in names:
        print(f"\n== {name}", flush=True)
        command = [sys.executable, str(programs / f"{name}.py"), *(["--quick"] if quick else [])]
        try:
            report["figures"][name] = run(command)
        except BenchmarkFailed as error:
            report["failed"][name] = str(error)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return report


def run(command: Sequence[str]) -> Figures:
    """Run a program, show what it prints, and return the JSON object of its last line."""
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        raise BenchmarkFailed(f"status {process.returncode}")
    try:
        figures = json.loads(last)
    except json.JSONDecodeError:
        figures = None
    if not isinstance(figures, dict):
        raise BenchmarkFailed("its last line is no JSON object")
    return figures


def write(report: Figures, folder: Path) -> tuple[Path, Path]:
    """Write a report as JSON and its ratios as Markdown; return both files."""
    folder.mkdir(parents=True, exist_ok=True)
    quick = ["quick"] if report["quick"] else []
    stem = "-".join([report["date"], report["hardware"], *report["only"], *quick])
    figures, table = folder / f"{stem}.json", folder / f"{stem}.md"
    figures.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table.write_text(markdown(report, figures.name), encoding="utf-8")
    return figures, table


def markdown(report: Figures, source: str) -> str:
    """Return the ratios of a report as a table. source: the file that has all figures."""
    lines = [
        f"# Benchmarks, {report['date']}, {report['hardware']}",
        "",
        f"Ours over theirs, of {'quick runs' if report['quick'] else 'whole runs'}. "
        f"All figures: [{source}]({source}).",
        "",
        "| benchmark | ratio | | better when |",
        "|---|---|---|---|",
    ]
    for name, figures in report["figures"].items():
        lines += [
            f"| {name} | `{key}` | {value:.3g} | {'low' if LOW.search(key) else 'high'} |"
            for key, value in ratios(figures)
        ]
    lines += [f"| {name} | failed: {reason} | | |" for name, reason in report["failed"].items()]
    return "\n".join(lines) + "\n"


def ratios(figures: Figures, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Give the figures that compare two things, those of inner objects by `outer.inner`."""
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from ratios(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and RATIO.search(f"{prefix}{key}"):
            yield f"{prefix}{key}", value


def hardware(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's model and number, such as `amd-epyc-9r14-2vcpu`."""
    model = platform.processor() or platform.machine()
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(encoding="utf-8"), re.M)
        model = found[1] if found else model
    plain = re.sub(r"\((r|tm)\)|\bprocessor\b|\bcpu\b|\d+-core|@.*", " ", model.lower())
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return f"{name}-{os.cpu_count()}vcpu"


if __name__ == "__main__":
    sys.exit(main())
