from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.cli import main
from omai_ray.engines.embedding.engine import EmbeddingEngine
from omai_ray.errors import ConfigError
from pipelines.chunk import Chunking
from pipelines.estimate import MEASURE_S, SAMPLED_UNITS, TokenizerOnly, estimate, measure, sample
from pipelines.job import EmbedJob
from pipelines.preview import Preview, describe_files, preview
from pipelines.report import Report
from tests.checkpoints import save_embedding_checkpoint

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]


def known(spec: ModelSpec) -> Mapping[str, Any]:
    """Return what the fake engine's provenance has."""
    return {"pooling": "none"}


def look(job: EmbedJob) -> Preview:
    """Return what a job would do with the fake engine."""
    return preview(job, known)


def files_of(found: Preview) -> dict[str, list[str]]:
    """Return the names of the files that something is to be done for."""
    kinds = {
        "new": found.new,
        "changed": found.changed,
        "deleted": found.deleted,
        "unfinished": found.unfinished,
        "rejected": [reject.file.name for reject in found.rejected],
    }
    return {kind: names for kind, names in kinds.items() if names}


@pytest.fixture
def root(write_corpus: Corpus) -> Path:
    """Write a corpus of three files."""
    return write_corpus(
        {"a.parquet": ["x", "y", None], "b.parquet": ["z"], "d=1/c.parquet": ["w w", "v"]}
    )


def test_before_the_first_run_all_is_new(root: Path, make_job: Job) -> None:
    """Nothing is written, not even the output's directory."""
    (root / "bad.parquet").write_bytes(b"PAR1 not really")
    job = make_job(unit_rows=2)
    found = look(job)
    assert files_of(found) == {
        "new": ["a.parquet", "b.parquet", "bad.parquet", "d=1/c.parquet"],
        "rejected": ["bad.parquet"],
    }
    assert found.differs
    assert found.counts() == {
        "files": 4,
        "files_new": 4,
        "files_changed": 0,
        "files_deleted": 0,
        "files_unfinished": 0,
        "files_rejected": 1,
        "bytes": sum(path.stat().st_size for path in root.rglob("*.parquet")),
        "rows": 6,
        "rows_pending": 6,
        "units": 4,
        "units_committed": 0,
        "units_pending": 4,
        "outputs_stale": 0,
    }
    assert not Path(job.output).exists()


def test_after_a_run_nothing_differs(root: Path, make_job: Job, run: Run) -> None:
    """As the same command would do nothing."""
    (root / "bad.parquet").write_bytes(b"PAR1 not really")
    run(make_job())
    found = look(make_job())
    assert (found.differs, found.pending, found.settings) == (False, [], {})


def test_a_preview_is_what_the_run_then_does(
    root: Path, make_job: Job, run: Run, write_corpus: Corpus, local_executor: Callable[..., Any]
) -> None:
    """New, changed and deleted files, and a committed file that is gone."""
    run(make_job(unit_rows=2))
    write_corpus({"b.parquet": ["other", "text"], "new.parquet": ["n"]})
    (root / "a.parquet").unlink()
    (Path(make_job().output) / "d=1" / "c.parquet").unlink()
    found = look(make_job())
    assert files_of(found) == {
        "new": ["new.parquet"],
        "changed": ["b.parquet"],
        "deleted": ["a.parquet"],
        "unfinished": ["d=1/c.parquet"],
    }
    executor = local_executor()
    report = run(make_job(), executor)
    assert executor.done == [unit.output for unit in found.pending]
    assert report.units_removed == len(found.stale) == 2
    assert report.rows_read == found.pending_rows


def test_a_stopped_run_leaves_unfinished_files(
    root: Path, make_job: Job, run: Run, local_executor: Callable[..., Any]
) -> None:
    """They are those of the run, and not new."""
    with pytest.raises(KeyboardInterrupt):
        run(make_job(), local_executor(stop_after=1))
    assert files_of(look(make_job())) == {"unfinished": ["b.parquet", "d=1/c.parquet"]}


def test_other_settings_or_another_model_mean_doing_all_again(
    root: Path, make_job: Job, run: Run
) -> None:
    """They are named, as a run would be refused; the files did not change."""
    run(make_job())
    job = make_job(dtype="float16")
    found = preview(job, lambda _: {"pooling": "mean", "unknown": 1})
    assert found.settings == {
        "dtype": ("float32", "float16"),
        "model pooling": ("none", "mean"),
        "model unknown": (None, 1),
    }
    assert (found.differs, files_of(found)) == (True, {})
    assert len(found.pending) == len(found.units) == 3


def test_what_is_known_of_a_model_by_its_files_is_what_the_engine_says(tmp_path: Path) -> None:
    """So that an unchanged model never seems to differ."""
    directory = save_embedding_checkpoint(tmp_path / "model")
    spec = ModelSpec(name="m", task="embedding", source=str(directory), dtype="float32", context=16)
    known = describe_files(spec)
    provenance = EmbeddingEngine(spec).provenance
    assert known == {key: provenance[key] for key in known}
    assert known["dtype"] == "float32"


def test_a_small_corpus_is_counted_and_not_estimated(
    root: Path, make_job: Job, run: Run, engine: Any
) -> None:
    """To the token of what the run embeds."""
    job = make_job()
    found = look(job)
    sampled = sample(job, found, engine)
    assert (sampled.rows, sampled.dead, sampled.margin) == (6, 1, 0.0)
    tokens = estimate(job, found, sampled, None).tokens
    assert tokens == run(job).tokens == 16


def test_a_large_corpus_is_estimated_from_the_same_units_every_time(
    make_job: Job, write_corpus: Corpus, engine: Any
) -> None:
    """With how far off it may be; each unit's rate counts as its rows do."""
    texts: dict[str, list[str | None]] = {
        f"{at:02}.parquet": ["w " * (at % 4 + 1)] * 600 for at in range(40)
    }
    write_corpus(texts)
    job = make_job(unit_rows=600)
    found = look(job)
    sampled = sample(job, found, engine)
    assert sampled == sample(job, found, engine)
    assert sampled.rows == SAMPLED_UNITS * 512
    exact = sum(600 * (at % 4 + 3) for at in range(40))
    assert sampled.margin is not None
    assert 0 < sampled.margin < 0.2
    assert abs(estimate(job, found, sampled, None).tokens - exact) <= sampled.margin * exact


def test_one_sampled_unit_says_nothing_of_others(
    make_job: Job, write_corpus: Corpus, engine: Any
) -> None:
    """So no margin is claimed."""
    write_corpus({"a.parquet": ["w"] * 600})
    job = make_job(unit_rows=600)
    sampled = sample(job, look(job), engine)
    assert (sampled.rows, sampled.margin, sampled.tokens_per_row) == (512, None, 3.0)


def test_time_and_cost_follow_from_speed_actors_and_price(
    root: Path, make_job: Job, engine: Any
) -> None:
    """16 tokens at 2 a second and actor, at 3,600 an hour: 1 a second."""
    job = make_job(actors=2, price_per_hour=3600)
    found = look(job)
    result = estimate(job, found, sample(job, found, engine), 2.0)
    assert result.run_s == 4.0
    assert result.cost == pytest.approx(8.0)
    assert result.cost_per_million_tokens == pytest.approx(500_000)
    unknown = estimate(job, found, sample(job, found, engine), None)
    assert (unknown.run_s, unknown.cost) == (None, None)


def test_speed_and_actors_are_by_default_those_of_the_last_run(
    root: Path, make_job: Job, run: Run, engine: Any, write_corpus: Corpus
) -> None:
    """From its report."""
    run(make_job())
    path = Path(make_job().output) / "_run" / "report.json"
    report = json.loads(path.read_text()) | {"tokens_per_actor_s": 250.0, "replicas_used": 3}
    path.write_text(json.dumps(report))
    write_corpus({"new.parquet": ["n"]})
    found = look(make_job())
    result = estimate(make_job(), found, sample(make_job(), found, engine), None)
    assert (result.tokens_per_actor_s, result.actors) == (250.0, 3)


def test_measuring_runs_the_engine_for_some_seconds(root: Path, make_job: Job, engine: Any) -> None:
    """The first pass is not counted: it is slower."""
    job = make_job()
    sampled = sample(job, look(job), engine)
    now = [0.0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    speed = measure(engine, sampled, clock)
    passes = len(engine.batches) - 1
    assert passes == MEASURE_S / 0.5
    tokens = sum(sum(map(len, sampled.ids[at % 3])) for at in range(passes))
    assert speed == pytest.approx(tokens / (MEASURE_S + 0.5))


def test_there_is_nothing_to_measure_without_a_text(
    write_corpus: Corpus, make_job: Job, engine: Any
) -> None:
    """It is said so."""
    write_corpus({"a.parquet": [None]})
    job = make_job()
    with pytest.raises(ConfigError, match="--measure"):
        measure(engine, sample(job, look(job), engine))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small checkpoint; keep the caller's settings out of it."""
    monkeypatch.delenv("OMAI_CONFIG", raising=False)
    return save_embedding_checkpoint(tmp_path / "model")


def command(verb: str, root: Path, model: Path, *options: str) -> list[str]:
    """Return a command line."""
    output = str(root.parent / "out")
    return ["corpus", verb, str(root), output, "--column", "text", "--model", str(model), *options]


def test_plan_prints_what_a_run_would_do_and_cost(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Ray and without the model's weights."""
    (model / "model.safetensors").unlink()
    options = ["--tokens-per-s", "10", "--actors", "2", "--price-per-hour", "0.5"]
    assert main(command("plan", root, model, *options)) == 0
    printed = capsys.readouterr().out
    for shown in ("3 new, 0 changed, 0 gone", "3 of 3 to do, 6 rows", "counted", "2 actors of 10"):
        assert shown in printed
    assert main(command("plan", root, model, "--json", *options)) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["rows_pending"], values["sample"]["dead"], values["actors"]) == (6, 1, 2)
    assert values["run_s"] == pytest.approx(values["tokens"] / 20)
    assert values["cost"] == pytest.approx(values["tokens"] / 10 / 3600 * 0.5)


def test_plan_says_how_to_learn_the_time(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no run was before; it guesses nothing."""
    assert main(command("plan", root, model)) == 0
    assert "unknown: give --tokens-per-s or --measure" in capsys.readouterr().out


def test_plan_measures_with_the_engine_that_would_run(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is loaded here."""
    monkeypatch.setattr("pipelines.estimate.MEASURE_S", 0.0)
    assert main(command("plan", root, model, "--measure", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["tokens_per_actor_s"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens-per-s", "0"], "expected a number above 0, got '0'"),
        (["--tokens-per-s", "inf"], "expected a number above 0, got 'inf'"),
        (["--actors", "0"], "expected a number of at least 1, got '0'"),
        (["--tokens-per-s", "1", "--measure"], "not allowed with"),
    ],
)
def test_a_rate_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """With what is expected."""
    with pytest.raises(SystemExit):
        main(command("plan", tmp_path, tmp_path, *options))
    assert message in capsys.readouterr().err


def test_diff_lists_files_and_settings_and_exits_as_asked(
    root: Path, model: Path, make_job: Job, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 unless --exit-code is given and something differs."""
    assert main(command("diff", root, model)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "new  a.parquet",
        "new  b.parquet",
        "new  d=1/c.parquet",
    ]
    assert main(command("diff", root, model, "--exit-code")) == 1
    capsys.readouterr()
    run(make_job(model=ModelSpec(name="model", task="embedding", source=str(model))))
    os.utime(root / "b.parquet", (1, 1))
    assert main(command("diff", root, model, "--dtype", "float16", "--json")) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["changed"] == ["b.parquet"]
    assert values["settings"]["dtype"] == {"was": "float32", "is": "float16"}
    assert values["settings"]["model prompt"] == {"was": None, "is": ""}


def test_diff_without_a_difference_says_so(
    root: Path, model: Path, make_job: Job, run: Run, engine: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With the model that made the output."""
    spec = ModelSpec(name="model", task="embedding", source=str(model))
    engine.provenance = describe_files(spec)
    run(make_job(model=spec))
    assert main(command("diff", root, model, "--exit-code")) == 0
    assert capsys.readouterr().out == "nothing differs\n"


def test_a_tokenizer_alone_gives_the_engines_ids(model: Path) -> None:
    """Counting needs no weights."""
    spec = ModelSpec(name="m", task="embedding", source=str(model), dtype="float32")
    texts = ["the quick brown fox", "dog " * 300]
    alone, engine = TokenizerOnly(spec), EmbeddingEngine(spec)
    assert alone.tokenize(texts) == engine.tokenize(texts)
    assert alone.context == engine.context


def test_chunks_that_the_model_cannot_be_given_are_refused(
    root: Path, make_job: Job, engine: Any
) -> None:
    """As the run would be."""
    job = make_job(on_long="chunk", chunking=Chunking(tokens=99))
    with pytest.raises(ConfigError, match="chunk-tokens is 99; the model accepts 8"):
        sample(job, look(job), engine)


def test_measuring_for_nothing_is_left_out(
    root: Path, model: Path, make_job: Job, run: Run, engine: Any,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The model is not loaded."""

    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    spec = ModelSpec(name="model", task="embedding", source=str(model))
    engine.provenance = describe_files(spec)
    run(make_job(model=spec))
    monkeypatch.setattr(EmbeddingEngine, "__init__", load)
    assert main(command("plan", root, model, "--measure")) == 0
    assert "0 of 3 to do, 0 rows" in capsys.readouterr().out


def test_a_cache_is_no_option_of_a_preview(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would not be looked into."""
    with pytest.raises(SystemExit):
        main(command("plan", root, model, "--cache", "dir"))
    assert "unrecognized arguments: --cache dir" in capsys.readouterr().err
