from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import OutputMismatch
from pipelines.job import EmbedJob
from pipelines.report import Report
from pipelines.run_record import RunRecord
from pipelines.tombstones import read_tombstones

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]


def stones(output: Path) -> list[tuple[str, str, int, int, str]]:
    """Return an output's tombstones, apart from when they were set."""
    found = read_tombstones(RunRecord(output, mend=False))
    return [(s.output, s.source, s.first_row, s.rows, s.reason) for s in found]


@pytest.fixture
def root(write_corpus: Corpus, make_job: Job, run: Run) -> Path:
    """Embed two files, one in two units; return the input."""
    root = write_corpus({"a.parquet": ["x", "y", "z"], "b.parquet": ["w", "v"]})
    run(make_job(unit_rows=2))
    return root


def test_a_first_run_leaves_none(root: Path, make_job: Job) -> None:
    """Nothing was there before it."""
    assert stones(Path(make_job().output)) == []


def test_a_file_that_is_gone_leaves_one_for_each_of_its_units(
    root: Path, make_job: Job, run: Run
) -> None:
    """With the rows of the input that it held, and when they went."""
    (root / "a.parquet").unlink()
    before = datetime.now(UTC).replace(microsecond=0)
    run(make_job())
    output = Path(make_job().output)
    assert stones(output) == [
        ("a-part-00000-of-00002.parquet", "a.parquet", 0, 2, "removed"),
        ("a-part-00001-of-00002.parquet", "a.parquet", 2, 1, "removed"),
    ]
    (stone, _) = read_tombstones(RunRecord(output))
    assert before <= datetime.fromisoformat(stone.at) <= datetime.now(UTC)


def test_a_file_that_changed_leaves_the_rows_that_it_had(
    root: Path, write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """It may have fewer now, and what was made of the others has to go."""
    write_corpus({"b.parquet": ["only"]})
    run(make_job())
    assert stones(Path(make_job().output)) == [("b.parquet", "b.parquet", 0, 2, "replaced")]
    write_corpus({"b.parquet": ["one", "two"]})
    run(make_job())
    assert stones(Path(make_job().output)) == [("b.parquet", "b.parquet", 0, 1, "replaced")]


def test_a_file_that_became_unreadable_leaves_the_rows_that_it_had(
    root: Path, make_job: Job, run: Run
) -> None:
    """They are not in the output any more."""
    (root / "b.parquet").write_bytes(b"PAR1 not really")
    run(make_job())
    run(make_job())
    assert stones(Path(make_job().output)) == [("b.parquet", "b.parquet", 0, 2, "replaced")]


def test_a_file_that_had_no_row_leaves_none(root: Path, make_job: Job, run: Run) -> None:
    """Such as one that could not be read, and then could."""
    good = (root / "b.parquet").read_bytes()
    (root / "new.parquet").write_bytes(b"PAR1 not really")
    run(make_job())
    (root / "new.parquet").write_bytes(good)
    run(make_job())
    assert stones(Path(make_job().output)) == []


def test_overwriting_leaves_all_that_was_there(root: Path, make_job: Job, run: Run) -> None:
    """Its vectors are of another run."""
    run(make_job(overwrite=True, unit_rows=100))
    assert [stone[0] for stone in stones(Path(make_job().output))] == [
        "a-part-00000-of-00002.parquet",
        "a-part-00001-of-00002.parquet",
        "b.parquet",
    ]


def test_a_unit_that_is_only_done_again_leaves_none(root: Path, make_job: Job, run: Run) -> None:
    """Its rows are the same."""
    (Path(make_job().output) / "b.parquet").unlink()
    run(make_job())
    assert stones(Path(make_job().output)) == []


def test_a_tombstone_is_there_before_its_file_goes(
    root: Path, make_job: Job, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run killed between the two leaves nothing unnoted."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    (root / "b.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            run(make_job())
    assert (Path(make_job().output) / "b.parquet").exists()
    assert [stone[0] for stone in stones(Path(make_job().output))] == ["b.parquet"]


def test_damaged_tombstones_are_refused_by_name(root: Path, make_job: Job) -> None:
    """Their loss would leave rows in an index for good."""
    output = Path(make_job().output)
    (output / "_run" / "tombstones.jsonl").write_text("not json\n")
    with pytest.raises(OutputMismatch, match=r"tombstones\.jsonl is damaged"):
        read_tombstones(RunRecord(output))
