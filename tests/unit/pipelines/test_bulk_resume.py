from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from omai_ray.errors import ConfigError
from omai_ray.storage import Location, ObjectNotFound
from pipelines.errors import OutputInUse, OutputMismatch
from pipelines.job import EmbedJob
from pipelines.report import Report
from pipelines.run_lease import lease
from pipelines.run_record import RunRecord

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Tree = Callable[[Path], dict[str, bytes]]
Executors = Callable[..., Any]

FILES: dict[str, list[str | None]] = {
    "a.parquet": [
        None if i % 9 == 4 else f"word{i} poison" if i == 7 else f"w{i}" for i in range(20)
    ],
    "d=1/b.parquet": ["x y z", None],
}


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def whole(
    write_corpus: Corpus, make_job: Job, run: Run, tree: Tree, tmp_path: Path
) -> dict[str, bytes]:
    """Return what an uninterrupted run writes."""
    write_corpus(FILES)
    job = make_job(output=tmp_path / "whole", unit_rows=5)
    run(job)
    return tree(Path(job.output))


@pytest.mark.parametrize("units", range(5))
def test_a_run_stopped_after_any_unit_resumes_to_the_same_bytes(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    tree: Tree,
    local_executor: Executors,
    units: int,
) -> None:
    """Committed units are not done again; data and dead letters equal an uninterrupted run's."""
    job = make_job(unit_rows=5)
    with pytest.raises(KeyboardInterrupt):
        run(job, local_executor(stop_after=units))
    report = run(job)
    assert (report.units_skipped, report.units_done) == (units, 5 - units)
    assert (report.total_rows, report.total_rows_written, report.total_rows_dead) == (22, 18, 4)
    assert tree(Path(job.output)) == whole


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", range(12))
def test_a_crash_around_any_rename_leaves_whole_files_and_resumes_to_the_same_bytes(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    when: str,
) -> None:
    """No row is lost or doubled: what is visible is whole, and redone if not in the ledger."""
    job = make_job(unit_rows=5)
    publish, calls = Location._publish, iter(range(100))

    def crash(target: Location, temporary: Path) -> None:
        crashing = next(calls) == call
        if crashing and when == "before":
            raise Crash
        publish(target, temporary)
        if crashing:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Location, "_publish", crash)
        try:
            run(job)
        except Crash:
            for path in Path(job.output).rglob("*.parquet"):
                assert path.read_bytes() == whole[path.relative_to(Path(job.output)).as_posix()]
    assert run(job).ok
    assert tree(Path(job.output)) == whole


def test_a_finished_run_does_nothing_again(
    whole: dict[str, bytes], make_job: Job, run: Run, tmp_path: Path, local_executor: Executors
) -> None:
    """The same command is safe to repeat."""
    executor = local_executor()
    report = run(make_job(output=tmp_path / "whole"), executor)
    assert executor.done == []
    assert (report.units_skipped, report.rows_read, report.total_rows_written) == (5, 0, 18)


def test_a_committed_file_that_is_gone_or_cut_is_done_again(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    tree: Tree,
    tmp_path: Path,
    local_executor: Executors,
) -> None:
    """The ledger alone is not believed."""
    output, names = tmp_path / "whole", [name for name in whole if name.startswith("a-")]
    (output / names[0]).unlink()
    (output / names[1]).write_bytes(b"PAR1")
    executor = local_executor()
    run(make_job(output=output), executor)
    assert executor.done == names[:2]
    assert tree(output) == whole


def test_a_torn_last_ledger_line_is_a_unit_that_was_not_committed(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    tree: Tree,
    tmp_path: Path,
    local_executor: Executors,
) -> None:
    """Its unit is done again, and later lines start on their own."""
    ledger = tmp_path / "whole" / "_run" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    executor = local_executor()
    run(make_job(output=tmp_path / "whole"), executor)
    assert len(executor.done) == 1
    assert len([json.loads(line) for line in ledger.read_text().splitlines()]) == 5
    assert tree(tmp_path / "whole") == whole


def test_leftovers_are_swept_and_a_writer_that_outlived_its_run_cannot_commit(
    whole: dict[str, bytes], make_job: Job, run: Run, tmp_path: Path
) -> None:
    """Its scratch directory is gone, so its rename finds no file."""
    leftover = tmp_path / "whole" / "_tmp" / "dead-run" / "unit.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    run(make_job(output=tmp_path / "whole"))
    assert not (tmp_path / "whole" / "_tmp").exists()
    with pytest.raises(ObjectNotFound):
        Location.parse(tmp_path / "whole" / "a.parquet").write_from(leftover)


def test_a_changed_input_file_is_done_again_and_its_old_parts_go(
    whole: dict[str, bytes],
    write_corpus: Corpus,
    make_job: Job,
    run: Run,
    tmp_path: Path,
    local_executor: Executors,
) -> None:
    """Rows of both versions never stand side by side."""
    write_corpus({"a.parquet": ["new", "newer"]})
    executor = local_executor()
    report = run(make_job(output=tmp_path / "whole"), executor)
    assert executor.done == ["a.parquet"]
    assert report.units_removed == 4
    assert pq.read_table(tmp_path / "whole", columns=["id"]).num_rows == 3
    assert not list((tmp_path / "whole").rglob("a-part-*"))


def test_an_input_file_that_is_gone_leaves_the_output(
    whole: dict[str, bytes], make_job: Job, run: Run, tmp_path: Path
) -> None:
    """The output mirrors the input."""
    (tmp_path / "in" / "d=1" / "b.parquet").unlink()
    run(make_job(output=tmp_path / "whole"))
    assert not list((tmp_path / "whole").rglob("b.parquet"))


def test_a_mended_file_replaces_its_dead_letter(
    write_corpus: Corpus, make_job: Job, run: Run, dead_letters: Callable[[Path], list[Any]]
) -> None:
    """A dead letter says what is wrong now."""
    root = write_corpus({"a.parquet": ["x"], "b.parquet": ["y"]})
    (root / "b.parquet").write_bytes(b"PAR1 not really")
    run(make_job())
    write_corpus({"b.parquet": ["y"]})
    report = run(make_job())
    assert dead_letters(Path(make_job().output)) == []
    assert (report.files_dead, report.total_rows_written) == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "other"}, "column was 'text' and is now 'other'"),
        ({"dtype": "float16"}, "dtype was 'float32' and is now 'float16'"),
        ({"on_long": "error"}, "on_long was 'truncate' and is now 'error'"),
        ({"columns": ("text",)}, r"columns was None and is now \['text'\]"),
    ],
)
def test_an_output_of_other_settings_is_refused_naming_what_differs_and_what_to_do(
    tmp_path: Path,
    make_job: Job,
    run: Run,
    local_executor: Executors,
    change: dict[str, Any],
    message: str,
) -> None:
    """Before the model is loaded."""
    import pyarrow as pa

    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["x"], "other": ["y"]}), tmp_path / "in" / "a.parquet")
    run(make_job())
    with pytest.raises(OutputMismatch, match=f"{message}.*--overwrite"):
        run(make_job(**change), local_executor())


def test_an_output_of_another_model_is_refused_and_overwrite_replaces_it_whole(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    tree: Tree,
    tmp_path: Path,
    local_executor: Executors,
) -> None:
    """Vectors of two models never stand in one directory."""
    other = local_executor()
    other.engine.fingerprint = "0" * 64
    job = make_job(output=tmp_path / "whole", unit_rows=5)
    with pytest.raises(OutputMismatch, match="embedding_fingerprint was 'ffff"):
        run(job, other)
    assert tree(Path(job.output)) == whole
    report = run(make_job(output=tmp_path / "whole", unit_rows=5, overwrite=True), other)
    assert (report.units_done, report.units_skipped) == (5, 0)
    assert all(
        pq.read_schema(path).metadata[b"omai.embedding_fingerprint"] == b"0" * 64
        for path in (tmp_path / "whole").glob("*.parquet")
    )


def test_a_directory_with_other_files_is_left_alone(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """Even with --overwrite: what no run wrote, no run deletes."""
    write_corpus({"a.parquet": ["x"]})
    job = make_job(overwrite=True)
    Path(job.output).mkdir()
    (Path(job.output) / "notes.txt").write_text("mine")
    with pytest.raises(OutputMismatch, match=r"notes\.txt"):
        run(job)
    assert [path.name for path in Path(job.output).iterdir()] == ["notes.txt"]


def test_an_output_that_is_a_file_or_cannot_be_made_is_refused(
    write_corpus: Corpus, make_job: Job, run: Run, tmp_path: Path
) -> None:
    """With the path and the cause."""
    write_corpus({"a.parquet": ["x"]})
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ConfigError, match="file"):
            run(make_job(output=output))


@pytest.mark.fault(29)
def test_a_second_runner_is_refused_naming_the_first(tmp_path: Path) -> None:
    """Two runners would sweep each other's files."""
    refused = pytest.raises(OutputInUse, match=f"process {os.getpid()} on")
    with lease(tmp_path / "out"), refused, lease(tmp_path / "out"):
        pass
    with lease(tmp_path / "out"):
        pass


def test_the_lease_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    """The kernel drops a lock with its holder."""
    code = (
        "import sys; from pathlib import Path; from pipelines.run_lease import lease\n"
        "with lease(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputInUse, match=f"process {holder.pid}"), lease(tmp_path / "out"):
            pass
        holder.kill()
        holder.wait()
        with lease(tmp_path / "out"):
            pass


def test_the_completion_record_is_there_only_while_the_output_is_complete(
    whole: dict[str, bytes],
    write_corpus: Corpus,
    make_job: Job,
    run: Run,
    tmp_path: Path,
    local_executor: Executors,
) -> None:
    """It goes as soon as there is work to do, and comes last."""
    success = tmp_path / "whole" / "_SUCCESS.json"
    assert json.loads(success.read_text())["total_rows_written"] == 18
    write_corpus({"c.parquet": ["new"]})
    job = make_job(output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(job, local_executor(stop_after=0))
    assert not success.exists()
    run(job)
    assert json.loads(success.read_text())["total_rows_written"] == 19


def test_units_keep_their_cut_when_the_corpus_grows(
    write_corpus: Corpus, make_job: Job, run: Run, local_executor: Executors
) -> None:
    """So that old units are not done again because the choice would now be another."""
    write_corpus({"a.parquet": ["x"] * 300})
    run(make_job())
    write_corpus({"b.parquet": ["y"] * 30_000})
    executor = local_executor()
    report = run(make_job(), executor)
    assert report.units_skipped == 2
    assert not any(name.startswith("a") for name in executor.done)


def test_a_damaged_ledger_is_refused_by_name(tmp_path: Path) -> None:
    """Guessing what is committed could lose rows."""
    (tmp_path / "_run").mkdir()
    (tmp_path / "_run" / "ledger.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(OutputMismatch, match=r"ledger\.jsonl is damaged"):
        RunRecord(tmp_path)
