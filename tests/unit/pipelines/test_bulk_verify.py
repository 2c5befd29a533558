from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omai_ray.cli import main
from omai_ray.errors import ConfigError
from pipelines.job import EmbedJob
from pipelines.report import Report
from pipelines.run_record import RunRecord
from pipelines.verify import verify

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]


@pytest.fixture
def output(write_corpus: Corpus, make_job: Job, run: Run) -> Path:
    """Return a whole output of three units, one with dead letters, and of an unreadable file."""
    root = write_corpus({"a.parquet": ["x", None, "y", "z z"], "d=1/b.parquet": ["w"]})
    (root / "bad.parquet").write_bytes(b"PAR1 not really")
    job = make_job(unit_rows=2)
    run(job)
    return Path(job.output)


def problems(output: Path) -> list[tuple[str, str]]:
    """Return what is wrong with an output."""
    return [(defect.file, defect.problem) for defect in verify(output).defects]


def amend(output: Path, **changes: Any) -> None:
    """Change what the ledger says of the second unit, as if that had been committed."""
    ledger = output / "_run" / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    second = next(line for line in lines if line["output"].startswith("a-part-00001"))
    second.update(changes)
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rewrite(output: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the second unit's file, and have the ledger say that it was so from the start."""
    path = output / "a-part-00001-of-00002.parquet"
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)
    content = path.read_bytes()
    amend(output, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def with_vectors(vectors: list[list[float]]) -> Callable[[pa.Table], pa.Table]:
    """Return what replaces a table's vectors, its metadata kept."""

    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field("embedding")
        made = pa.array(vectors, pa.list_(pa.float32(), len(vectors[0])))
        at = table.schema.get_field_index("embedding")
        return table.set_column(at, pa.field("embedding", made.type, field.nullable), made)

    return change


def test_an_output_as_it_was_committed_has_no_defect(output: Path) -> None:
    """Every file is counted."""
    found = verify(output)
    assert (found.defects, found.files, found.rows_written, found.rows_dead) == ([], 3, 4, 1)


def test_the_ledger_has_the_sha256_of_every_file(output: Path) -> None:
    """Taken before the file is visible."""
    for entry in RunRecord(output).entries.values():
        if entry.bytes is not None:
            assert entry.sha256 == hashlib.sha256((output / entry.output).read_bytes()).hexdigest()


def test_a_flipped_bit_anywhere_is_found(output: Path) -> None:
    """Even where a reader would not mind it."""
    path = output / "d=1" / "b.parquet"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    assert ("d=1/b.parquet", "its bytes are not those that were committed (SHA-256)") in problems(
        output
    )


def test_a_missing_and_a_cut_file_are_named(output: Path) -> None:
    """Dead letters too."""
    (output / "a-part-00001-of-00002.parquet").unlink()
    (output / "_dead_letters" / "a-part-00000-of-00002.parquet").unlink()
    (output / "d=1" / "b.parquet").write_bytes(b"PAR1")
    found = dict(problems(output))
    assert found["a-part-00001-of-00002.parquet"] == "is missing"
    assert found["_dead_letters/a-part-00000-of-00002.parquet"] == "is missing"
    assert found["d=1/b.parquet"].startswith("has 4 bytes; ")
    assert len(found) == 3


def test_a_file_that_no_run_wrote_is_named(output: Path) -> None:
    """A reader of the directory would take it for data."""
    (output / "d=1" / "x.parquet").write_bytes(b"")
    (output / "_dead_letters" / "x.parquet").write_bytes(b"")
    assert [file for file, _ in problems(output)] == [
        "_dead_letters/x.parquet",
        "d=1/x.parquet",
    ]


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        ([[1, 2, 3, 4], [float("nan"), 0, 0, 0]], "the vector of row 1 is not finite"),
        ([[float("inf"), 0, 0, 0]] * 2, r"the vector of row 0 is not finite \(2 such rows\)"),
        ([[1, 2], [3, 4]], "have 4 dimensions"),
    ],
)
def test_vectors_that_no_model_gave_are_found(
    output: Path, vectors: list[list[float]], problem: str
) -> None:
    """Though the file is the one that was committed."""
    rewrite(output, with_vectors(vectors))
    ((file, found),) = problems(output)
    assert file == "a-part-00001-of-00002.parquet"
    assert re.search(problem, found)


@pytest.mark.parametrize(
    ("dtype", "length", "wrong"),
    [
        ("float32", 1, []),
        ("float16", 1, []),
        ("float32", 1.01, ["the vector of row 0 has not the length 1 (2 such rows)"]),
    ],
)
def test_a_model_of_unit_vectors_has_every_length_checked(
    write_corpus: Corpus,
    make_job: Job,
    run: Run,
    local_executor: Callable[..., Any],
    dtype: str,
    length: float,
    wrong: list[str],
) -> None:
    """Within what float16 rounds; other models' lengths are their own."""
    write_corpus({"a.parquet": ["x", "y y"]})
    executor = local_executor()
    embed_ids = executor.engine.embed_ids

    def scaled(inputs: Any) -> Any:
        vectors = embed_ids(inputs)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * length

    executor.engine.unit_length, executor.engine.embed_ids = True, scaled
    job = make_job(dtype=dtype)
    run(job, executor)
    assert problems(Path(job.output)) == [("a.parquet", problem) for problem in wrong]


def test_a_footer_of_another_run_or_other_rows_is_found(output: Path) -> None:
    """Such as a file that was copied in from elsewhere."""

    def change(table: pa.Table) -> pa.Table:
        metadata = {**table.schema.metadata, b"omai.model": b"other", b"omai.source_rows": b"7:9"}
        return table.replace_schema_metadata(metadata)

    rewrite(output, change)
    assert [problem for _, problem in problems(output)] == [
        "its footer says omai.model other; the run has fake",
        "its footer says omai.source_rows 7:9; the run has 2:4",
    ]


def test_rows_and_dead_letters_must_be_as_many_as_were_committed(output: Path) -> None:
    """By reason."""
    rewrite(output, lambda table: table.slice(1))
    letters = output / "_dead_letters" / "a-part-00000-of-00002.parquet"
    pq.write_table(pa.Table.from_pylist([], pq.read_schema(letters)), letters)
    assert problems(output) == [
        (
            "_dead_letters/a-part-00000-of-00002.parquet",
            "has no rows and 0 files; null 1 and 0 files were committed",
        ),
        ("a-part-00001-of-00002.parquet", "has 1 rows; 2 were committed"),
    ]


def test_a_run_that_was_stopped_is_not_complete(
    output: Path, write_corpus: Corpus, make_job: Job, run: Run, local_executor: Callable[..., Any]
) -> None:
    """What it did commit is whole all the same."""
    write_corpus({"new.parquet": ["x"] * 3})
    with pytest.raises(KeyboardInterrupt):
        run(make_job(), local_executor(stop_after=1))
    ((file, problem),) = problems(output)
    assert (file, problem.partition(";")[0]) == (
        "_SUCCESS.json",
        "is missing: 7 of 8 rows are accounted for",
    )


def test_what_a_killed_run_did_not_note_is_told_from_what_no_run_wrote(output: Path) -> None:
    """The same command does the one again; the other is in the way."""
    ledger = output / "_run" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))
    unnoted = json.loads(lines[-1])["output"]
    pq.write_table(pa.table({"a": [1]}), output / "other.parquet")
    found = dict(problems(output))
    assert "is the run's, which ended before it was noted" == found[unnoted]
    assert "no run wrote this file" == found["other.parquet"]


def test_verifying_changes_nothing(output: Path) -> None:
    """Not even a torn last line of the ledger, which a run would cut."""
    ledger = output / "_run" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    verify(output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no run"):
        verify(tmp_path)


def test_the_command_lists_defects_and_exits_with_1(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 without any."""
    assert main(["corpus", "verify", str(output)]) == 0
    assert capsys.readouterr().out.endswith("1 rows dead-lettered: 0 defects\n")
    (output / "d=1" / "b.parquet").unlink()
    assert main(["corpus", "verify", str(output)]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "d=1/b.parquet: is missing"
    assert main(["corpus", "verify", str(output), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ok"], printed["defects"]) == (
        False,
        [{"file": "d=1/b.parquet", "problem": "is missing"}],
    )


def test_what_cannot_be_read_is_said_in_one_line(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a traceback."""
    manifest = output / "_run" / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    assert main(["corpus", "verify", str(output)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"omai-ray: {manifest}: ")
    assert said.endswith("is a directory\n")
    assert said.count("\n") == 1


def test_a_hidden_file_is_no_data(output: Path) -> None:
    """Such as what a killed process was writing; readers skip it."""
    (output / "d=1" / ".0123.tmp").write_bytes(b"half")
    (output / ".0123.tmp").write_bytes(b"half")
    assert problems(output) == []


def test_dead_letters_that_are_gone_are_made_again(output: Path, make_job: Job, run: Run) -> None:
    """A unit's, and those of a file that cannot be read."""
    names = {path.name for path in (output / "_dead_letters").iterdir()}
    assert names == {"a-part-00000-of-00002.parquet", "bad.parquet"}
    for name in names:
        (output / "_dead_letters" / name).unlink()
    assert run(make_job()).units_done == 1
    assert problems(output) == []


def test_an_output_of_another_format_is_refused(output: Path) -> None:
    """Its records say less."""
    path = output / "_run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["format_version"] = 1
    del manifest["provenance"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="was written in format 1, and this release reads"):
        verify(output)


def test_an_output_is_not_complete_for_one_who_allows_fewer_dead_rows(
    output: Path, make_job: Job, run: Run
) -> None:
    """Though nothing is left to do."""
    assert not run(make_job(max_dead=0.0)).ok
    assert [file for file, _ in problems(output)] == ["_SUCCESS.json"]
    assert run(make_job()).ok
    assert problems(output) == []
