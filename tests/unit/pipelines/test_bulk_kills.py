"""A job that is really killed, and a disk that is really full: each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UNITS = 10
# Arguments: the input, the output, after how many more committed units to be killed (0: never).
RUN = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path

from omai_ray.catalog import ModelSpec
from pipelines.job import EmbedJob
from pipelines.progress import Silent
from pipelines.run import run_job
from pipelines.run_ledger import FileLedger
from tests.unit.pipelines.conftest import FakeEngine, LocalExecutor

source, output, left = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
append, calls = FileLedger.append, []

def append_then_die(ledger, entry):
    append(ledger, entry)
    calls.append(entry)
    if len(calls) == left:
        os.kill(os.getpid(), signal.SIGKILL)

FileLedger.append = append_then_die
model = ModelSpec(name="fake", task="embedding", source="nowhere")
job = EmbedJob(source=source, output=output, column="text", model=model, unit_rows=7, max_dead=1.0)
report = run_job(job, lambda _: nullcontext(LocalExecutor(FakeEngine())), Silent())
print(report.units_done)
"""


def sums(output: Path) -> dict[str, str]:
    """Return the SHA-256 of every data and dead-letter file."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*.parquet"))
    }


def run(source: Path, output: Path, left: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the job, which is killed after so many units."""
    command = [sys.executable, "-c", RUN, str(source), str(output), str(left)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def source(write_corpus: Callable[..., Path]) -> Path:
    """Write a corpus of ten units."""
    texts = [None if row % 9 == 4 else f"word{row}" for row in range(7 * UNITS)]
    return write_corpus({"a.parquet": texts[:42], "d=1/b.parquet": texts[42:]})


@pytest.mark.fault(26)
def test_a_job_killed_at_30_60_and_90_percent_leaves_the_files_of_one_that_was_not(
    source: Path, tmp_path: Path
) -> None:
    """No row is lost or doubled: every file's SHA-256 is the same."""
    assert run(source, tmp_path / "whole").stdout == f"{UNITS}\n"
    for _ in (30, 60, 90):
        done = run(source, tmp_path / "out", left=UNITS * 30 // 100)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = run(source, tmp_path / "out")
    assert done.stdout == "1\n", done.stderr
    assert sums(tmp_path / "out") == sums(tmp_path / "whole")


SMALL_DISK = """
set -e
mount -t tmpfs -o size={small} tmpfs {disk}
set +e
{python} -c "$RUN" {source} {disk}/out 0 2> {errors}
echo $? > {status}
set -e
cd {disk}/out
find . -name '*.parquet' -not -path './_tmp/*' -exec cp --parents {{}} {visible} ';'
cd {root}
mount -o remount,size=64m {disk}
{python} -c "$RUN" {source} {disk}/out 0
cp -r {disk}/out {after}
"""


def may_mount() -> bool:
    """Tell whether this user may mount a filesystem that nobody else sees."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.mark.skipif(not may_mount(), reason="unshare (util-linux) may not make namespaces here")
@pytest.mark.fault(28)
def test_a_full_disk_ends_the_job_in_a_line_leaves_whole_files_and_the_job_resumes(
    source: Path, tmp_path: Path
) -> None:
    """The disk is a small one of the test's own, which grows before the second run."""
    run(source, tmp_path / "whole")
    whole = sums(tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*.parquet"))
    for name in ("disk", "visible"):
        (tmp_path / name).mkdir()
    paths = {name: tmp_path / name for name in ("disk", "visible", "after", "errors", "status")}
    script = SMALL_DISK.format(
        small=max(size // 2, 40_000), python=sys.executable, source=source, root=ROOT, **paths
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env={"RUN": RUN, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert paths["status"].read_text() == "1\n"
    assert "No space left on device" in paths["errors"].read_text().splitlines()[-1]
    visible = sums(paths["visible"])
    assert 0 < len(visible) < len(whole)
    assert visible.items() <= whole.items()
    assert sums(paths["after"]) == whole
    assert json.loads((paths["after"] / "_SUCCESS.json").read_text())["total_rows"] == 70
