from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError
from omai_ray.storage import Location
from pipelines import embed_corpus as command
from pipelines.embed_corpus import embed_corpus
from pipelines.engine import build_engine
from pipelines.errors import RunFailed
from pipelines.job import EmbedJob
from pipelines.pool import PoolSize
from pipelines.progress import Silent, Snapshot
from pipelines.ray_executor import actor_strategy
from pipelines.report import Report
from pipelines.verify import verify
from tests.s3_server import s3_server

# Ray Data 2.60 sets deprecated options of its own when its context is made.

ROWS, UNITS = 60, 8  # and one row that is null: tests/ray/pipelines/conftest.py
Job = Callable[..., EmbedJob]

# Of the third unit the worker comes to no end, so that not all can be done before the signal.
STOPPED_AFTER_TWO_UNITS = """
import dataclasses, signal, sys, threading
from omai_ray.leaving import leave
from pipelines import embed_corpus, run_record
from tests.ray.pipelines.conftest import InstantEngine

class StuckEngine(InstantEngine):
    def tokenize(self, texts):
        if any(text.endswith(" 30") for text in texts):
            threading.Event().wait()
        return super().tokenize(texts)

append, job = run_record.RunRecord.append, embed_corpus.make_job

def append_then_stop(record, entry):
    append(record, entry)
    if len(record.entries) == 2:
        signal.raise_signal(signal.Signals[sys.argv[1]])

run_record.RunRecord.append = append_then_stop
changes = {"unit_rows": 12, "engine_factory": StuckEngine}
embed_corpus.make_job = lambda *a, **k: dataclasses.replace(job(*a, **k), **changes)
leave(embed_corpus.main(sys.argv[2:]))
"""


def run_stopped(name: str, corpus: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which gets a signal after two units."""
    arguments = [str(corpus), str(output), "--column", "text", "--actors", "1"]
    return subprocess.run(
        [sys.executable, "-c", STOPPED_AFTER_TWO_UNITS, name, *arguments],
        cwd=Path(command.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=150,
    )


class Recorder(Silent):
    """Keeps what progress there was."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def update(self, snapshot: Snapshot) -> None:
        """Keep it."""
        self.snapshots.append(snapshot)


def tree(output: Path) -> dict[str, bytes]:
    """Return every visible data and dead-letter file of an output."""
    paths = {path.relative_to(output): path for path in sorted(output.rglob("*.parquet"))}
    return {str(n): path.read_bytes() for n, path in paths.items() if n.parts[0] != "_tmp"}


def broken_engine(spec: ModelSpec, fail: Callable[[], Any]) -> Any:
    """Return an engine that needs no model, and fails when it is used."""
    return SimpleNamespace(
        context=9,
        dimension=2,
        int8_cosine="",
        unit_length=False,
        tokens=0,
        computed_tokens=0,
        fingerprint="f" * 64,
        provenance={},
        tokenizer=SimpleNamespace(tokens_around=2),
        tokenize=lambda texts: [[1, 2] for _ in texts],
        embed_ids=lambda _: fail(),
    )


def test_every_row_has_the_vector_that_the_engine_gives_it_alone(
    undisturbed: tuple[Path, Report],
) -> None:
    """Padding, order, units and actors change nothing but the last bits."""
    # Not above: workers that unpickle what is here would import it too.
    from omai_ray.engines.embedding.engine import EmbeddingEngine

    output, report = undisturbed
    table = pq.read_table(output)
    rows = list(range(0, ROWS, 10))
    texts = table["text"].take(rows).to_pylist()
    vectors = np.stack(table["embedding"].take(rows).to_numpy())
    engine = EmbeddingEngine(
        ModelSpec(name="m", task="embedding", source="builtin:all-minilm-l6-v2")
    )
    alone = np.concatenate([engine.embed_ids([ids]) for ids in engine.tokenize(texts)])
    exact = engine.provenance["dtype"] == "float32"  # on a CPU without bfloat16
    np.testing.assert_allclose(vectors, alone, atol=2e-6 if exact else 5e-3)
    assert (report.rows_read, report.rows_written, report.rows_dead) == (ROWS + 1, ROWS, 1)
    assert (report.units_done, report.actors) == (UNITS, 2)
    assert report.tokens == sum(map(len, engine.tokenize(table["text"].to_pylist())))
    assert report.fingerprint == engine.fingerprint


def test_the_same_job_again_does_nothing_and_gives_its_actors_back(
    undisturbed: tuple[Path, Report], make_job: Job
) -> None:
    """Resume is the same command."""
    before = tree(undisturbed[0])
    report = embed_corpus(make_job(undisturbed[0]))
    assert (report.units_done, report.units_skipped, report.total_rows_written) == (0, UNITS, ROWS)
    assert tree(undisturbed[0]) == before


def test_a_job_from_store_to_store_writes_what_one_on_disk_does(
    undisturbed: tuple[Path, Report], corpus: Path, make_job: Job
) -> None:
    """The workers read, upload and look for the run's claim themselves."""
    with s3_server("corpora") as server:
        options = f"endpoint_override={server.endpoint}&region=us-east-1&anonymous=true"
        for path in corpus.rglob("*.parquet"):
            key = path.relative_to(corpus).as_posix()
            Location.parse(f"s3://corpora/in/{key}?{options}").write_bytes(path.read_bytes())
        job = make_job(f"s3://corpora/out?{options}", source=f"s3://corpora/in?{options}", actors=1)
        report = embed_corpus(job)
        stored = {
            key.removeprefix("out/"): stored.content
            for key, stored in server.buckets["corpora"].items()
            if key.startswith("out/") and key.endswith(".parquet")
        }
    assert stored == tree(undisturbed[0])
    assert report.rows_written == ROWS


def test_an_actor_killed_in_mid_unit_costs_nothing_but_time(
    undisturbed: tuple[Path, Report], make_job: Job, tmp_path: Path
) -> None:
    """Ray starts another, the unit is done again, and the bytes are the same."""
    marker = tmp_path / "died"

    def mortal(spec: ModelSpec) -> Any:
        engine: Any = build_engine(spec)
        embed_ids = engine.embed_ids

        def embed_then_die_once(inputs: Sequence[Sequence[int]]) -> Any:
            vectors = embed_ids(inputs)
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return vectors

        engine.embed_ids = embed_then_die_once
        return engine

    progress = Recorder()
    report = embed_corpus(make_job(tmp_path / "out", engine_factory=mortal, actors=1), progress)
    assert marker.exists()
    assert tree(tmp_path / "out") == tree(undisturbed[0])
    assert report.rows_written == ROWS
    assert progress.snapshots[-1].rows_done == ROWS + 1


def test_a_unit_that_always_kills_its_worker_ends_the_job(
    ray_cluster: None, make_job: Job, tmp_path: Path
) -> None:
    """Ray would restart it for ever."""

    def deadly(spec: ModelSpec) -> Any:
        return broken_engine(spec, lambda: os.kill(os.getpid(), signal.SIGKILL))

    deadly_job = make_job(tmp_path / "out", engine_factory=deadly, unit_rows=1000, actors=1)
    with pytest.raises(RunFailed, match="its worker died 3 times"):
        embed_corpus(deadly_job)
    assert tree(tmp_path / "out") == {}


def test_a_worker_with_another_engine_than_the_runs_ends_the_job(
    ray_cluster: None, make_job: Job, tmp_path: Path
) -> None:
    """As where nodes compute in different types: it says which, and what to do."""

    def engine(spec: ModelSpec) -> Any:
        import ray

        made = broken_engine(spec, lambda: np.zeros((1, 2), np.float32))
        dtype = "float32" if ray.get_runtime_context().get_actor_id() else "bfloat16"
        made.fingerprint, made.provenance = dtype, {"dtype": dtype, "pooling": "mean"}
        return made

    job = make_job(tmp_path / "out", engine_factory=engine, unit_rows=1000, actors=1)
    with pytest.raises(RunFailed, match=r"differs from the run's in dtype\. Give its dtype"):
        embed_corpus(job)
    assert tree(tmp_path / "out") == {}


def test_a_job_leaves_nodes_alone_that_its_model_may_not_be_on(
    ray_cluster: None, make_job: Job, tmp_path: Path
) -> None:
    """On a cluster; it says which labels none of the nodes has."""
    spec = ModelSpec(
        name="m", task="embedding", source="builtin:all-minilm-l6-v2", placement={"pool": "none"}
    )
    with pytest.raises(ConfigError, match="on one node with the labels pool=none"):
        embed_corpus(make_job(tmp_path / "out", model=spec, actors=None))


def test_a_command_killed_in_mid_run_resumes_to_the_same_bytes(
    undisturbed_instant: Path, corpus: Path, make_instant_job: Job, tmp_path: Path
) -> None:
    """Whatever is visible after the kill is whole, and nothing is lost or doubled."""
    whole = tree(undisturbed_instant)
    done = run_stopped("SIGKILL", corpus, tmp_path / "out")
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = tree(tmp_path / "out")
    assert 2 <= len(left)
    assert left.items() < whole.items()
    report = embed_corpus(make_instant_job(tmp_path / "out"))
    assert (report.units_skipped, report.total_rows_written) == (2, ROWS)
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_command_says_how_to_resume_and_leaves_whole_files(
    undisturbed_instant: Path, corpus: Path, tmp_path: Path, name: str
) -> None:
    """Without a traceback, without leftovers, with status 130."""
    done = run_stopped(name, corpus, tmp_path / "out")
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.splitlines()[-1].startswith("interrupted: the same command resumes")
    assert "Traceback" not in done.stderr
    assert tree(tmp_path / "out").items() < tree(undisturbed_instant).items()
    assert not (tmp_path / "out" / "_tmp").exists()


def test_a_pool_between_two_bounds_gives_the_same_bytes(
    undisturbed_instant: Path, make_instant_job: Job, tmp_path: Path
) -> None:
    """However many actors there were at a time; each unit says which of them did it."""
    options = {"actors": 1, "max_actors": 2, "price_per_hour": 1.0, "max_dead": 0.1}
    job = make_instant_job(tmp_path / "out", **options)
    report = embed_corpus(job)
    assert tree(Path(job.output)) == tree(undisturbed_instant)
    assert report.actors == 2
    assert 1 <= len(report.workers) <= 2
    assert all(report.workers)
    assert sum(times.units for times in report.workers.values()) == UNITS
    assert report.forward_tokens == report.tokens <= report.computed_tokens
    assert report.cost_per_million_tokens is not None
    assert verify(job.output).defects == []


def test_ray_data_is_given_the_bounds_and_the_first_size() -> None:
    """It adds actors up to the most."""
    strategy = actor_strategy(PoolSize(least=2, first=3, most=8))
    assert (strategy.min_size, strategy.initial_size, strategy.max_size) == (2, 3, 8)


def test_what_is_to_be_left_free_is_no_room_for_actors(
    ray_cluster: None, make_job: Job, tmp_path: Path
) -> None:
    """Though it is free now."""
    with pytest.raises(ConfigError, match="--leave-cpus 4 of them are left"):
        embed_corpus(make_job(tmp_path / "out", leave_cpus=4))


def test_a_model_that_cannot_be_loaded_is_refused_before_any_work(
    ray_cluster: None, make_job: Job, tmp_path: Path
) -> None:
    """The worker's error is the user's, as the engine words it."""
    broken = ModelSpec(name="broken", task="embedding", source=str(tmp_path))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        embed_corpus(make_job(tmp_path / "out", model=broken))
    assert not (tmp_path / "out" / "_run" / "manifest.json").exists()


def test_a_model_that_needs_more_than_ray_has_is_refused(
    ray_cluster: None, make_job: Job, tmp_path: Path
) -> None:
    """Not waited for without end."""
    large = ModelSpec(name="l", task="embedding", source=".", num_cpus=1000)
    with pytest.raises(ConfigError, match="needs 1000 CPU"):
        embed_corpus(make_job(tmp_path / "out", model=large, actors=None))


def test_the_search_example_finds_a_row_by_its_text(undisturbed: tuple[Path, Report]) -> None:
    """Run as the documentation has it, with the model that embedded the corpus."""
    output, _ = undisturbed
    row = pq.read_table(output, columns=["id", "text"]).to_pylist()[30]
    done = subprocess.run(
        [sys.executable, "examples/search.py", str(output), row["text"]],
        cwd=Path(command.__file__).parents[1],
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0].split()
    assert (first[0], first[-1]) == ("1", f"id={row['id']}")
    assert float(first[1]) == pytest.approx(1, abs=5e-3)
    assert len(done.stdout.splitlines()) == 10
