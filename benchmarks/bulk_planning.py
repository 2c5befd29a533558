"""How long a bulk job of very many files takes to plan and to resume, and in how much memory.

`python benchmarks/bulk_planning.py [--files 100000] [--quick]`: the corpus is tiny parquet files,
hard links of a few, in directories of a thousand. Timed are the steps that a job takes before its
first unit: list, footers, ledger, units and which of them are pending, manifest; then the same
again over a ledger and an output that have every unit. No model is loaded and no row is read. It
prints a table, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq

from omai_ray.catalog import ModelSpec
from pipelines.job import EmbedJob, describe_output
from pipelines.plan import Unit, check_columns, read_footers
from pipelines.run import Plan, make_plan
from pipelines.run_ledger import Entry
from pipelines.run_record import RunRecord
from pipelines.source import find_files

LINKS = 20_000  # of one file; filesystems allow some 65,000
IN_DIRECTORY = 1000


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the files")
    args = parser.parse_args()
    files = args.files // 100 if args.quick else args.files
    with tempfile.TemporaryDirectory(prefix="omai-bulk-planning-") as directory:
        root = Path(directory)
        size = write_tree(root / "in", files)
        job = EmbedJob(
            source=str(root / "in"),
            output=root / "out",
            column="text",
            model=ModelSpec(name="none", task="embedding", source="nowhere"),
        )
        (root / "out" / "_run").mkdir(parents=True)
        first: dict[str, float] = {}
        plan = plan_job(job, first)
        write_tree(root / "out", files)
        write_ledger(root / "out", plan.units, size)
        again: dict[str, float] = {}
        resumed = plan_job(job, again)
    if len(plan.pending) != files or resumed.pending:
        sys.exit(f"{len(plan.pending)} units pending at first and {len(resumed.pending)} then")
    report(files, first, again)


def write_tree(root: Path, files: int) -> int:
    """Make the files; return the size of each."""
    table = pa.table({"id": pa.array([0, 1]), "text": ["some words", "and more"]})
    original = root
    for index in range(files):
        path = root / f"part={index // IN_DIRECTORY:04d}" / f"{index % IN_DIRECTORY:04d}.parquet"
        if index % IN_DIRECTORY == 0:
            path.parent.mkdir(parents=True)
        if index % LINKS == 0:
            pq.write_table(table, path)
            original = path
        else:
            os.link(original, path)
    return original.stat().st_size


def write_ledger(output: Path, units: list[Unit], size: int) -> None:
    """Write what a run that did every unit has noted."""
    with (output / "_run" / "ledger.jsonl").open("w", encoding="utf-8") as file:
        for unit in units:
            entry = Entry(unit.output, unit.key, rows=unit.rows, written=unit.rows, bytes=size)
            file.write(json.dumps(asdict(entry)) + "\n")


def plan_job(job: EmbedJob, seconds: dict[str, float]) -> Plan:
    """Do what a job does before its first unit, each step timed."""
    with timed(seconds, "list"):
        files = find_files(job.source)
    with timed(seconds, "footers"):
        footers, rejected = read_footers(files)
        check_columns(footers, job.column, job.columns)
    with timed(seconds, "ledger"):
        record = RunRecord(job.output)
    with timed(seconds, "units"):
        plan = make_plan(job, footers, rejected, record, describe_output(job))
    with timed(seconds, "manifest"):
        if record.manifest != plan.manifest:
            record.write_manifest(plan.manifest)
    return plan


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block took."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def report(files: int, first: dict[str, float], again: dict[str, float]) -> None:
    """Print the table and the line."""
    print(f"{'step':<10}{'plan, s':>10}{'resume, s':>12}   {files:,} files")
    for name in first:
        print(f"{name:<10}{first[name]:>10.2f}{again[name]:>12.2f}")
    plan_s, resume_s = sum(first.values()), sum(again.values())
    cpu_s = time.process_time()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'all':<10}{plan_s:>10.2f}{resume_s:>12.2f}")
    print(f"at most {peak_mb:,.0f} MB; {cpu_s:.0f} s of CPU, the making of the files included")
    line = {
        "files": files,
        "seconds": round(plan_s, 2),
        "resume_seconds": round(resume_s, 2),
        "cpu_seconds": round(cpu_s, 2),
        "peak_rss_mb": round(peak_mb),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
