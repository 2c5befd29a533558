from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from omai_ray.errors import ConfigError, OMAiError
from omai_ray.storage import Location, StorageError
from pipelines.errors import OutputInUse, OutputMismatch, RunFailed
from pipelines.job import EmbedJob
from pipelines.plan import read_footers
from pipelines.preview import preview
from pipelines.report import Report
from pipelines.run_lease import CLAIM_S, Claim, lease
from pipelines.run_ledger import Entry, SegmentLedger
from pipelines.run_record import RunRecord
from pipelines.source import check_apart, find_files
from pipelines.tombstones import read_tombstones
from pipelines.verify import Defect, verify
from tests.s3_server import S3Server, Stored, s3_server

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Tree = Callable[[Path], dict[str, bytes]]
Executors = Callable[..., Any]

BUCKET = "corpora"
FILES: dict[str, list[str | None]] = {
    "a.parquet": [
        None if i % 9 == 4 else f"word{i} poison" if i == 7 else f"w{i}" for i in range(20)
    ],
    "k=1/v=x y/b.parquet": ["x y z", None],
    "_hidden/c.parquet": ["no"],
}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Serve an empty bucket, credentials and endpoint in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody checks")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with s3_server(BUCKET) as server:
        yield server


@pytest.fixture
def at(s3: S3Server) -> Callable[..., str]:
    """Return a function that gives the URI of a key; timeouts and pauses are short."""

    def uri(key: str, **options: Any) -> str:
        options = {"request_timeout": 1, "max_attempts": 3, **options}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"s3://{BUCKET}/{key}?endpoint_override={s3.endpoint}&{query}"

    return uri


@pytest.fixture
def corpus(write_corpus: Corpus, at: Callable[..., str]) -> Path:
    """Write the files both on the disk and in the bucket."""
    root = write_corpus(FILES)
    for path in root.rglob("*.parquet"):
        place = Location.parse(at(f"in/{path.relative_to(root).as_posix()}"))
        place.write_bytes(path.read_bytes())
    return root


@pytest.fixture
def whole(corpus: Path, make_job: Job, run: Run, tree: Tree, tmp_path: Path) -> dict[str, bytes]:
    """Return what a run from disk to disk writes."""
    run(make_job(output=tmp_path / "whole", unit_rows=5))
    return tree(tmp_path / "whole")


def objects(s3: S3Server, prefix: str) -> dict[str, bytes]:
    """Return the parquet objects below a prefix."""
    return {
        key.removeprefix(prefix): stored.content
        for key, stored in sorted(s3.buckets[BUCKET].items())
        if key.startswith(prefix) and key.endswith(".parquet")
    }


def test_from_store_to_store_every_file_equals_that_of_a_run_on_disk(
    whole: dict[str, bytes], make_job: Job, run: Run, at: Callable[..., str], s3: S3Server
) -> None:
    """Partition directories are mirrored as they are; nothing of the making is left."""
    report = run(make_job(source=at("in"), output=at("out"), unit_rows=5))
    assert whole == objects(s3, "out/")
    assert (report.total_rows, report.total_rows_written, report.total_rows_dead) == (22, 18, 4)
    kept = {k for k in s3.buckets[BUCKET] if k.startswith("out/_") and not k.endswith("/")}
    kept -= {f"out/{name}" for name in whole}
    records = ("_SUCCESS.json", "_run/manifest.json", "_run/report.json", "_run/report.html")
    ledger = {key for key in kept if key.startswith("out/_run/ledger/")}
    assert ledger
    assert kept - ledger == {f"out/{name}" for name in records}


def test_an_output_in_a_store_is_verified_and_compared_as_one_on_disk(
    whole: dict[str, bytes], make_job: Job, run: Run, at: Callable[..., str], s3: S3Server
) -> None:
    """Nothing is written by looking; what went leaves tombstones there too."""
    job = make_job(source=at("in"), output=at("out"), unit_rows=5)
    run(job)
    before = dict(s3.buckets[BUCKET])
    assert verify(at("out")).defects == []
    assert not preview(job, lambda _: {}).differs
    assert dict(s3.buckets[BUCKET]) == before
    gone = next(key for key in objects(s3, "out/") if not key.startswith("_"))
    Location.parse(at("out")).child(gone).delete()
    assert Defect(gone, "is missing") in verify(at("out")).defects
    source = next(key for key in objects(s3, "in/") if not key.startswith("_"))
    Location.parse(at("in")).child(source).delete()
    assert preview(job, lambda _: {}).deleted == [source]
    run(job)
    stones = read_tombstones(RunRecord(at("out"), mend=False))
    assert {(stone.source, stone.reason) for stone in stones} == {(source, "removed")}
    assert verify(at("out")).defects == []


@pytest.mark.parametrize("units", range(5))
def test_a_run_into_a_store_stopped_after_any_unit_resumes_to_the_same_bytes(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    at: Callable[..., str],
    s3: S3Server,
    local_executor: Executors,
    units: int,
) -> None:
    """What is in the ledger is not done again."""
    job = make_job(source=at("in"), output=at("out"), unit_rows=5)
    with pytest.raises(KeyboardInterrupt):
        run(job, local_executor(stop_after=units))
    report = run(job)
    assert (report.units_skipped, report.units_done) == (units, 5 - units)
    assert whole == objects(s3, "out/")
    assert run(job, executor := local_executor()).units_skipped == 5
    assert executor.done == []


def test_a_lost_ledger_segment_is_units_that_were_not_committed(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    at: Callable[..., str],
    s3: S3Server,
    local_executor: Executors,
) -> None:
    """As when a process dies before it wrote it; so is a data object of another size."""
    job = make_job(source=at("in"), output=at("out"), unit_rows=5)
    run(job)
    segments = sorted(k for k in s3.buckets[BUCKET] if "/ledger/" in k and k.endswith(".jsonl"))
    del s3.buckets[BUCKET][segments[-1]]
    cut = next(key for key in s3.buckets[BUCKET] if key.startswith("out/a-part-00000"))
    s3.buckets[BUCKET][cut] = Stored(b"PAR1", s3.buckets[BUCKET][cut].written)
    executor = local_executor()
    run(job, executor)
    assert executor.done
    assert cut.removeprefix("out/") in executor.done
    assert whole == objects(s3, "out/")


def test_changed_and_deleted_objects_are_followed_and_overwrite_starts_anew(
    corpus: Path,
    make_job: Job,
    run: Run,
    at: Callable[..., str],
    s3: S3Server,
    local_executor: Executors,
) -> None:
    """As on a disk."""
    job = make_job(source=at("in"), output=at("out"))
    run(job)
    Location.parse(at("in/k=1/v=x y/b.parquet")).delete()
    changed = s3.buckets[BUCKET]["in/a.parquet"]
    later = Stored(changed.content, changed.written + timedelta(seconds=2))
    s3.buckets[BUCKET]["in/a.parquet"] = later
    executor = local_executor()
    report = run(job, executor)
    assert (executor.done, report.units_removed) == (["a.parquet"], 1)
    assert set(objects(s3, "out/")) == {"a.parquet", "_dead_letters/a.parquet"}
    other = make_job(source=at("in"), output=at("out"), dtype="float16", overwrite=True)
    assert run(other).units_done == 1


def test_a_run_may_read_from_a_store_and_write_to_a_disk_and_the_other_way(
    whole: dict[str, bytes],
    make_job: Job,
    run: Run,
    tree: Tree,
    at: Callable[..., str],
    s3: S3Server,
    tmp_path: Path,
) -> None:
    """Input and output are each where they are."""
    run(make_job(source=at("in"), output=tmp_path / "down", unit_rows=5))
    assert whole == tree(tmp_path / "down")
    run(make_job(output=at("up"), unit_rows=5))
    assert whole == objects(s3, "up/")


def test_a_store_that_is_slow_down_or_silent_for_a_while_costs_no_row(
    whole: dict[str, bytes], make_job: Job, run: Run, at: Callable[..., str], s3: S3Server
) -> None:
    """A 503 is tried again, and a request without an answer ends and is made again."""
    job = make_job(source=at("in"), output=at("out"), unit_rows=5)
    s3.fail(503, times=2, method="GET", path="/in/a")
    s3.fail(503, times=1, method="PUT", path="/out/a-part-00001")
    s3.fail(503, times=1, method="GET", path="list-type")
    s3.fail(None, times=1, method="GET", path="b.parquet")
    report = run(job)
    assert whole == objects(s3, "out/")
    assert report.dead_reasons == {"engine_failed": 1, "null": 3}
    assert all(fault.times == 0 for fault in s3.faults)


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/in/a", "s3://corpora/in/a.parquet: "),
        ("PUT", "/out/a-part", "s3://corpora/out/a-part-00000-of-00004.parquet: .*ACCESS_DENIED"),
        ("GET", "list-type", "s3://corpora/.*ACCESS_DENIED"),
        ("PUT", "_run/claims", "s3://corpora/out/_run/claims/.*ACCESS_DENIED"),
    ],
)
def test_a_store_that_refuses_fails_the_run_naming_the_object(
    corpus: Path,
    make_job: Job,
    run: Run,
    at: Callable[..., str],
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    message: str,
) -> None:
    """Never as a dead letter: the content is not at fault. The same command then resumes."""
    monkeypatch.setattr("omai_ray.storage.FIRST_PAUSE_S", 0.001)
    job = make_job(source=at("in"), output=at("out"), unit_rows=5)
    s3.fail(403, times=float("inf"), method=method, path=path)
    with pytest.raises(OMAiError, match=message) as failed:
        run(job)
    assert "someone" not in str(failed.value)
    s3.faults.clear()
    assert run(job).ok
    assert run(job).total_rows_written == 18


def test_a_failing_read_of_a_unit_is_no_dead_letter(
    corpus: Path,
    make_job: Job,
    run: Run,
    at: Callable[..., str],
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    local_executor: Executors,
) -> None:
    """The footers were read; then the store began to refuse."""
    monkeypatch.setattr("omai_ray.storage.FIRST_PAUSE_S", 0.001)
    job = make_job(source=at("in"), output=at("out"), unit_rows=5)
    executor = local_executor()
    described = executor.describe

    def break_store() -> Any:
        s3.fail(403, float("inf"), "GET", "/in/a")
        return described()

    executor.describe = break_store
    with pytest.raises(StorageError, match=r"s3://corpora/in/a\.parquet"):
        run(job, executor)
    assert objects(s3, "out/") == {}


def test_a_corrupt_object_is_dead_lettered_as_a_corrupt_file_is(
    corpus: Path, make_job: Job, run: Run, at: Callable[..., str]
) -> None:
    """The content is at fault, not the store."""
    Location.parse(at("in/bad.parquet")).write_bytes(b"PAR1 not really")
    report = run(make_job(source=at("in"), output=at("out")))
    assert (report.files_dead, report.total_rows) == (1, 22)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in/*.parquet", ["a.parquet"]),
        ("in/**/*.parquet", ["_hidden/c.parquet", "a.parquet", "k=1/v=x y/b.parquet"]),
        ("in/k=?/*/b.parquet", ["k=1/v=x y/b.parquet"]),
        ("in/[ab].parquet", ["a.parquet"]),
        ("in/a.parquet", ["a.parquet"]),
        ("in/", ["a.parquet", "k=1/v=x y/b.parquet"]),
    ],
)
def test_a_stores_globs_match_what_those_of_a_disk_do(
    corpus: Path, at: Callable[..., str], pattern: str, names: list[str]
) -> None:
    """With the same names, so that the outputs have the same."""
    files = find_files(at(pattern))
    assert [file.name for file in files] == names
    on_disk = find_files(str(corpus.parent / pattern))
    assert [(file.name, file.size) for file in on_disk] == [(f.name, f.size) for f in files]
    assert len(read_footers(files)[0]) == len(names)


def test_an_input_that_is_not_there_is_refused(corpus: Path, at: Callable[..., str]) -> None:
    """Whether a key, a bucket or a scheme."""
    for source in (at("nothing"), "hdfs://host/in", "s3://"):
        with pytest.raises(ConfigError, match=r"no parquet files here|unknown scheme|no bucket"):
            find_files(source)


def test_an_output_among_the_input_is_refused(at: Callable[..., str]) -> None:
    """It would be read as input."""
    with pytest.raises(ConfigError, match="lies inside the input"):
        check_apart(at("in"), at("in/out"))
    check_apart(at("in"), at("into"))
    check_apart(at("in"), "in/out")


@pytest.mark.fault(29)
def test_of_two_runners_in_one_store_the_second_is_refused_naming_the_first(
    at: Callable[..., str], s3: S3Server
) -> None:
    """It takes its own claim back, and the first goes on."""
    refused = pytest.raises(OutputInUse, match=r"s3://corpora/out is in use .*process \d+ on")
    with lease(at("out")) as first, refused, lease(at("out")):
        pass
    first.check()
    with lease(at("out")):
        pass
    assert [key for key in s3.buckets[BUCKET] if "/claims/" in key and key[-1] != "/"] == []


def test_two_runners_that_claim_at_once_never_both_have_it(
    at: Callable[..., str], s3: S3Server
) -> None:
    """Each writes before it lists."""
    place = Location.parse(at("out"))
    first, second = Claim(place), Claim(place)
    second._write()
    with pytest.raises(OutputInUse):
        first.acquire()
    second.acquire()


def age(s3: S3Server, claim: Claim, seconds: float) -> None:
    """Let a claim's object be older."""
    key = claim.claim.path.partition("/")[2]
    stored = s3.buckets[BUCKET][key]
    older = Stored(stored.content, stored.written - timedelta(seconds=seconds))
    s3.buckets[BUCKET][key] = older


def test_a_dead_runners_claim_ends_and_is_swept(at: Callable[..., str], s3: S3Server) -> None:
    """After the time in which it was to be refreshed, by the store's clock."""
    place = Location.parse(at("out"))
    dead = Claim(place)
    dead.acquire()
    age(s3, dead, CLAIM_S - 5)
    with pytest.raises(OutputInUse, match="its claim ends within 60 s"):
        Claim(place).acquire()
    age(s3, dead, 10)
    Claim(place).acquire()
    assert not dead.claim.exists()


def test_a_runner_that_overslept_and_was_swept_must_stop(
    at: Callable[..., str], s3: S3Server
) -> None:
    """It does not write its claim again, and its workers commit nothing."""
    now = [0.0]
    sleeper = Claim(Location.parse(at("out")), clock=lambda: now[0])
    sleeper.acquire()
    sleeper.refresh()
    sleeper.check()
    sleeper.claim.delete()
    sleeper.refresh()
    assert not sleeper.claim.exists()
    with pytest.raises(RunFailed, match="no longer this run's"):
        sleeper.check()


def test_a_runner_whose_store_is_silent_keeps_its_claim_for_as_long_as_it_lasts(
    at: Callable[..., str], s3: S3Server
) -> None:
    """A failed refresh is not the end; a minute of them is."""
    now = [0.0]
    claim = Claim(Location.parse(at("out")), clock=lambda: now[0])
    claim.acquire()
    s3.fail(403, float("inf"))
    now[0] = CLAIM_S - 1
    claim.refresh()
    claim.check()
    now[0] = CLAIM_S + 1
    with pytest.raises(RunFailed, match="not refreshed for 60 s"):
        claim.check()


def test_a_worker_that_outlived_its_run_commits_nothing(
    corpus: Path,
    make_job: Job,
    run: Run,
    at: Callable[..., str],
    s3: S3Server,
    local_executor: Executors,
) -> None:
    """Its run's claim is gone."""
    executor = local_executor()
    described = executor.describe

    def lose() -> Any:
        for key in [key for key in s3.buckets[BUCKET] if "/claims/" in key]:
            del s3.buckets[BUCKET][key]
        return described()

    executor.describe = lose
    with pytest.raises(RunFailed, match="no longer this run's; nothing was committed"):
        run(make_job(source=at("in"), output=at("out")), executor)
    assert objects(s3, "out/") == {}


def test_a_prefix_with_other_objects_is_left_alone(
    corpus: Path, make_job: Job, run: Run, at: Callable[..., str], s3: S3Server
) -> None:
    """Even with --overwrite."""
    Location.parse(at("out/notes.txt")).write_bytes(b"mine")
    with pytest.raises(OutputMismatch, match=r"notes\.txt"):
        run(make_job(source=at("in"), output=at("out"), overwrite=True))
    assert {"out/notes.txt"} == {key for key in s3.buckets[BUCKET] if key.startswith("out/")}


def test_entries_that_come_together_share_a_segment_and_segments_become_one(
    at: Callable[..., str], s3: S3Server
) -> None:
    """The last entry of a name counts, across segments, snapshots and removals."""
    now = [0.0]
    place = Location.parse(at("ledger"))
    ledger = SegmentLedger(place, clock=lambda: now[0])
    assert ledger.read() == {}
    for i in range(3):
        ledger.append(Entry(f"{i}", "old"))
    assert len(place.list()) == 1  # the first at once; the next wait
    now[0] += 10
    ledger.append(Entry("1", "new"))
    assert len(place.list()) == 2
    ledger.append(Entry("2", "", removed=True))
    ledger.flush()
    for _ in range(2):
        reader = SegmentLedger(place)
        assert reader.read() == {"0": Entry("0", "old"), "1": Entry("1", "new")}
        assert [stat.name[12:] for stat in place.list()] == ["-snapshot.jsonl"]
    reader.append(Entry("0", "newest"))
    assert SegmentLedger(place).read()["0"].key == "newest"


def test_a_late_entry_is_written_though_no_other_follows(
    at: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a timer; where the store fails then, the end of the run writes it."""
    started: list[Any] = []
    monkeypatch.setattr("threading.Timer.start", lambda timer: started.append(timer))
    place = Location.parse(at("ledger"))
    ledger = SegmentLedger(place, clock=lambda: 0.0)
    for name in ("a", "b", "c"):
        ledger.append(Entry(name, "key"))
    assert [set(SegmentLedger(place).read()), len(started)] == [{"a"}, 1]
    started[0].function()
    assert set(SegmentLedger(place).read()) == {"a", "b", "c"}


def test_a_damaged_segment_is_refused_by_name(at: Callable[..., str]) -> None:
    """Guessing what is committed could lose rows."""
    Location.parse(at("out/_run/ledger/000000000000-x.jsonl")).write_bytes(b"not json\n")
    with pytest.raises(OutputMismatch, match=r"000000000000-x\.jsonl is damaged"):
        RunRecord(at("out"))


def test_the_completion_record_and_manifest_tell_no_endpoint_options(
    corpus: Path, make_job: Job, run: Run, at: Callable[..., str], s3: S3Server
) -> None:
    """The settings name the source alone, so that another endpoint or timeout still resumes."""
    run(make_job(source=at("in"), output=at("out")))
    manifest = json.loads(s3.buckets[BUCKET]["out/_run/manifest.json"].content)
    assert manifest["settings"]["source"] == "s3://corpora/in"
    assert run(make_job(source=at("in", max_attempts=4), output=at("out"))).units_done == 0
    table = pq.read_table(Location.parse(at("out/a.parquet")).open_input())
    assert table.num_rows == 17


def test_a_key_that_no_output_can_mirror_is_refused_by_name(
    corpus: Path, at: Callable[..., str], s3: S3Server
) -> None:
    """Where a path would have an empty part."""
    s3.buckets[BUCKET]["in/d//x.parquet"] = s3.buckets[BUCKET]["in/a.parquet"]
    with pytest.raises(ConfigError, match=r"in/d//x\.parquet: a key with an empty part"):
        find_files(at("in"))
    assert [file.name for file in find_files(at("in/*.parquet"))] == ["a.parquet"]


@pytest.mark.parametrize(
    "key",
    [
        "x?endpoint_override=127.0.0.1:1&scheme=http&region=a.parquet",
        "x?anonymous=true&region=a/b.parquet",
        "x?other=a.parquet",
    ],
)
@pytest.mark.parametrize("source", ["in", "in/**"])
def test_a_key_never_names_another_store(at: Callable[..., str], key: str, source: str) -> None:
    """Whoever may write to the bucket could have the server sign requests to a host of theirs."""
    Location.parse(at("in")).child(key).write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"in/x\?.*: a key with '\?NAME='"):
        find_files(at(source))


def test_a_key_with_a_question_mark_alone_is_read(at: Callable[..., str]) -> None:
    """It is no option."""
    place = Location.parse(at("in")).child("why?.parquet")
    place.write_bytes(b"PAR1")
    (file,) = find_files(at("in"))
    assert place == Location.parse(file.path)
