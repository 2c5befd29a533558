"""What a run must not delete, and what it must though no ledger tells of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from omai_ray.errors import ConfigError
from pipelines.errors import RunFailed
from pipelines.job import EmbedJob
from pipelines.preview import preview
from pipelines.report import Report
from pipelines.run_lease import Lease
from pipelines.run_record import RunRecord
from pipelines.sinks import feed
from pipelines.sinks.sink import SinkTarget
from pipelines.tombstones import read_tombstones
from pipelines.verify import verify

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Tree = Callable[[Path], dict[str, bytes]]


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def root(write_corpus: Corpus, make_job: Job, run: Run) -> Path:
    """Embed three files, one in two units, two with dead rows; return the input."""
    root = write_corpus(
        {"a.parquet": ["x", None, "y"], "d=1/b.parquet": ["w", None], "c.parquet": ["v"]}
    )
    run(make_job(unit_rows=2))
    return root


@pytest.fixture
def output(root: Path, make_job: Job) -> Path:
    """Return where they were embedded to."""
    return Path(make_job().output)


def forget(output: Path, *names: str) -> None:
    """Take units out of the ledger, as if the run had been killed before it noted them."""
    ledger = output / "_run" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(x for x in lines if json.loads(x)["output"] not in names))


def buried(output: Path) -> list[tuple[str, int, int]]:
    """Return which rows an output's tombstones are of."""
    stones = read_tombstones(RunRecord(output, mend=False))
    return [(stone.output, stone.first_row, stone.rows) for stone in stones]


def test_an_unnoted_file_goes_with_its_input(
    root: Path, output: Path, make_job: Job, run: Run, tree: Tree
) -> None:
    """With its dead letters, and a tombstone; a preview tells of it."""
    forget(output, "d=1/b.parquet")
    (root / "d=1" / "b.parquet").unlink()
    found = preview(make_job(), lambda _: {})
    assert [entry.output for entry in found.stale] == ["d=1/b.parquet"]
    assert run(make_job()).units_removed == 1
    assert not [name for name in tree(output) if "b.parquet" in name]
    assert buried(output) == [("d=1/b.parquet", 0, 2)]
    assert verify(output).defects == []


def test_unnoted_parts_of_a_file_that_is_cut_otherwise_now_go(
    root: Path, output: Path, write_corpus: Corpus, make_job: Job, run: Run, tree: Tree
) -> None:
    """One of them had its dead letters alone."""
    first, second = (f"a-part-0000{part}-of-00002.parquet" for part in range(2))
    forget(output, first, second)
    (output / first).unlink()
    write_corpus({"a.parquet": ["new"]})
    run(make_job())
    assert {name for name in tree(output) if "a" in Path(name).stem} == {"a.parquet"}
    assert buried(output) == [(second, 2, 1)]
    assert verify(output).defects == []


def test_an_unnoted_file_goes_with_an_overwrite(
    root: Path, output: Path, make_job: Job, run: Run
) -> None:
    """As all that the run wrote."""
    forget(output, "d=1/b.parquet")
    (root / "d=1" / "b.parquet").unlink()
    run(make_job(overwrite=True))
    assert verify(output).defects == []
    assert ("d=1/b.parquet", 0, 2) in buried(output)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_another_wrote_stays_whatever_its_name(
    root: Path, output: Path, make_job: Job, run: Run, overwrite: bool
) -> None:
    """Without our footer, with that of another model or input file, or under a name of its own."""
    table = pq.read_table(output / "c.parquet", partitioning=None)
    facts = table.schema.metadata
    kinds = {
        "c-part-00000-of-00009.parquet": None,
        "c-part-00001-of-00009.parquet": {**facts, b"omai.embedding_fingerprint": b"0" * 64},
        "c-part-00002-of-00009.parquet": {**facts, b"omai.source_file": b"other.parquet"},
        "mine.parquet": facts,
    }
    for name, metadata in kinds.items():
        pq.write_table(table.replace_schema_metadata(metadata), output / name)
    (output / "c-part-00003-of-00009.parquet").write_bytes(b"PAR1 not really")
    before = {name: (output / name).read_bytes() for name in kinds}
    forget(output, "c.parquet")
    (root / "c.parquet").unlink()
    run(make_job(overwrite=overwrite))
    assert {name: (output / name).read_bytes() for name in kinds} == before
    assert (output / "c-part-00003-of-00009.parquet").exists()
    assert not (output / "c.parquet").exists()


def test_strays_are_found_by_the_old_manifest_even_if_a_kill_comes_between(
    root: Path, output: Path, make_job: Job, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one, which no longer explains them, is written when they are gone."""
    forget(output, "d=1/b.parquet")
    (root / "d=1" / "b.parquet").unlink()

    def die(*_: Any) -> None:
        raise Crash

    for name in ("remove", "write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(RunRecord, name, die)
            with pytest.raises(Crash):
                run(make_job())
        assert not (output / "_SUCCESS.json").exists()
    run(make_job())
    assert verify(output).defects == []


def test_an_overwrite_killed_before_its_manifest_is_no_foreign_directory(
    root: Path, output: Path, make_job: Job, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is left are directories of the input's tree."""

    def die(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "write_manifest", die)
        with pytest.raises(Crash):
            run(make_job(overwrite=True))
    assert (output / "d=1").is_dir()
    assert run(make_job()).ok
    assert verify(output).defects == []


def test_an_overwrite_with_a_sink_that_is_away_deletes_nothing(
    root: Path,
    output: Path,
    make_job: Job,
    run: Run,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is opened first."""

    def refuse(target: SinkTarget) -> Any:
        raise OSError("nothing listens")

    monkeypatch.setattr(feed, "connect", refuse)
    before = tree(output)
    sink = SinkTarget("qdrant", "qdrant+http://host/docs", "qdrant+http://host/docs", "docs")
    with pytest.raises(ConfigError, match="nothing listens"):
        run(make_job(overwrite=True, sink=sink))
    assert tree(output) == before
    assert verify(output).defects == []


def test_an_overwrite_of_which_two_units_would_be_one_file_deletes_nothing(
    root: Path, output: Path, write_corpus: Corpus, make_job: Job, run: Run, tree: Tree
) -> None:
    """Names are compared first."""
    write_corpus({"c-part-00000-of-00002.parquet": ["u"], "c.parquet": ["v", "v"]})
    run(make_job())
    before = tree(output)
    with pytest.raises(ConfigError, match="two inputs would be written as c-part-00000"):
        run(make_job(overwrite=True, unit_rows=1))
    assert tree(output) == before
    assert verify(output).defects == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_lost_its_output_deletes_nothing_more(
    root: Path, make_job: Job, run: Run, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Another may be at work there by now."""
    for name in ("a.parquet", "d=1/b.parquet"):
        (root / name).unlink()
    remove, removed = RunRecord.remove, []

    def note(record: RunRecord, name: str) -> None:
        removed.append(name)
        remove(record, name)

    def check(lease: Lease) -> None:
        if removed:
            raise RunFailed("no longer this run's")

    monkeypatch.setattr(RunRecord, "remove", note)
    monkeypatch.setattr(Lease, "check", check)
    with pytest.raises(RunFailed, match="no longer this run's"):
        run(make_job(overwrite=overwrite))
    assert len(removed) == 1
