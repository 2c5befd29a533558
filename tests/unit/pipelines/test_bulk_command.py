from __future__ import annotations

import argparse
import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines.embed_corpus as command
from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError, ModelNotFound
from omai_ray.settings import Settings
from pipelines.chunk import Chunking
from pipelines.embed_corpus import add_arguments, choose_model
from pipelines.job import EmbedJob
from pipelines.progress import Lines, ShowProgress, Snapshot
from pipelines.report import Report

Job = Callable[..., EmbedJob]


@pytest.fixture
def settings() -> Settings:
    """Return the defaults."""
    return Settings()


@pytest.fixture
def report() -> Report:
    """Return an empty run's report."""
    return Report(output="out", model="m", fingerprint="f" * 64, max_dead=0.01, files=1)


def parse(*words: str) -> argparse.Namespace:
    """Parse the command's arguments."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["in", "out", "--column", "text", *words])


def test_the_default_model_is_the_catalogs_first_that_embeds(settings: Settings) -> None:
    """The one that the API serves."""
    assert choose_model(None, settings).name == "text-embedding-ada-002"


def test_a_directory_or_hub_id_that_is_not_in_the_catalog_is_a_model(
    settings: Settings, tmp_path: Path
) -> None:
    """A directory is called by its last part, which is no machine's path."""
    (tmp_path / "my-model").mkdir()
    local = choose_model(str(tmp_path / "my-model"), settings)
    assert (local.name, local.source) == ("my-model", str(tmp_path / "my-model"))
    hub = choose_model("BAAI/bge-small-en-v1.5", settings)
    assert (hub.name, hub.source) == ("BAAI/bge-small-en-v1.5", "BAAI/bge-small-en-v1.5")


def test_a_misspelt_or_chat_model_is_refused(settings: Settings) -> None:
    """Not looked for elsewhere."""
    with pytest.raises(ConfigError, match=r"no model 'text-embeding-ada-002'.*one of the catalog"):
        choose_model("text-embeding-ada-002", settings)
    with pytest.raises(ModelNotFound, match="does chat"):
        choose_model("omai-gpt-4", settings)


def test_a_catalog_without_an_embedding_model_asks_for_one() -> None:
    """By the name of the option."""
    chat = ModelSpec(name="c", task="chat", source="builtin:omai-chat-small")
    with pytest.raises(ConfigError, match="--model"):
        choose_model(None, Settings(models=(chat,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"max_dead": 2}, "max-dead"), ({"actors": 0}, "actors"), ({"unit_rows": 0}, "unit-rows")],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(
    make_job: Job, changes: dict[str, Any], message: str
) -> None:
    """When the job is made."""
    with pytest.raises(ConfigError, match=message):
        make_job(**changes)


def test_the_command_exits_0_1_or_130_without_a_traceback(
    settings: Settings,
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Done; failed or too many dead rows; interrupted."""

    def outcome(result: Report | BaseException) -> tuple[int, str]:
        def embed_corpus(*_: object) -> Report:
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(command, "embed_corpus", embed_corpus)
        return command.run(parse(), settings), capsys.readouterr().err

    assert outcome(report) == (0, "")
    assert outcome(ConfigError("no such column")) == (1, "omai-ray: no such column\n")
    status, message = outcome(KeyboardInterrupt())
    assert (status, "same command resumes" in message) == (130, True)
    report.total_rows, report.total_rows_dead = 100, 2
    status, message = outcome(report)
    assert (status, "2.00% of the rows or files" in message) == (1, True)


def test_json_prints_one_object_on_stdout(
    settings: Settings,
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For scripts; rates and the verdict are in it."""
    monkeypatch.setattr(command, "embed_corpus", lambda *_: report)
    command.run(parse("--json"), settings)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ok"], printed["rows_per_s"], printed["max_dead"]) == (True, 0.0, 0.01)


@pytest.fixture
def jobs(report: Report, monkeypatch: pytest.MonkeyPatch) -> list[EmbedJob]:
    """Return the jobs that the command is about to run; none is."""
    given: list[EmbedJob] = []

    def embed_corpus(job: EmbedJob, _: object) -> Report:
        given.append(job)
        return report

    monkeypatch.setattr(command, "embed_corpus", embed_corpus)
    return given


def test_arguments_reach_the_job(settings: Settings, jobs: list[EmbedJob]) -> None:
    """Each option means what it says."""
    options = (
        "--on-long error --dtype float16 --columns a,b --max-dead 0.5 --actors 3:5 --overwrite"
    )
    options += " --leave-cpus 1.5 --leave-gpus 2 --price-per-hour 0.25"
    command.run(parse(*options.split(), "--address", "auto"), settings)
    assert jobs == [
        EmbedJob(
            source="in",
            output=Path("out"),
            column="text",
            model=settings.models[1],
            columns=("a", "b"),
            on_long="error",
            dtype="float16",
            max_dead=0.5,
            actors=3,
            max_actors=5,
            leave_cpus=1.5,
            leave_gpus=2.0,
            price_per_hour=0.25,
            address="auto",
            overwrite=True,
            metrics_model="text-embedding-ada-002",
        )
    ]


def test_template_and_chunk_arguments_reach_the_job(
    settings: Settings, jobs: list[EmbedJob]
) -> None:
    """A template's backslash escapes are read."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = "--on-long chunk --chunk-tokens 99 --chunk-overlap 9 --chunk-pool mean --row-id"
    args = ["in", "out", "--template", r"{a}\n{b}", *options.split(), "--cache", "dir"]
    assert command.run(parser.parse_args(args), settings) == 0
    assert jobs == [
        EmbedJob(
            source="in",
            output=Path("out"),
            template="{a}\n{b}",
            model=settings.models[1],
            on_long="chunk",
            chunking=Chunking(tokens=99, overlap=9, pool="mean"),
            row_id=True,
            cache=Path("dir"),
            metrics_model="text-embedding-ada-002",
        )
    ]


@pytest.mark.parametrize("words", [["--column", "a", "--template", "{b}"], []])
def test_both_or_neither_of_column_and_template_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names of the options."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["in", "out", *words])
    message = capsys.readouterr().err
    assert "--column" in message
    assert "--template" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--on-long chunk --chunk-tokens 8 --chunk-overlap 8",
            "chunk-overlap is 8; it must be below",
        ),
        ("--chunk-tokens 8", "on-long is 'truncate', not 'chunk'"),
        ("--chunk-pool mean", "on-long is 'truncate', not 'chunk'"),
    ],
)
def test_chunk_options_that_make_no_sense_are_refused_with_status_1(
    settings: Settings, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    """Before anything is read."""
    assert command.run(parse(*words.split()), settings) == 1
    assert message in capsys.readouterr().err


def test_help_loads_neither_ray_nor_torch_nor_pyarrow() -> None:
    """The command line answers at once."""
    code = (
        "import sys, pipelines.embed_corpus\n"
        "print([m for m in ('ray', 'torch', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    root = Path(command.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_an_object_store_is_named_by_its_uri(
    settings: Settings, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As input and as output, its slashes kept."""
    jobs: list[EmbedJob] = []

    def embed_corpus(job: EmbedJob, _: object) -> Report:
        jobs.append(job)
        return report

    monkeypatch.setattr(command, "embed_corpus", embed_corpus)
    arguments = parse()
    arguments.source, arguments.output = "s3://corpus/*.parquet", "gs://vectors/2026?anonymous=true"
    assert command.run(arguments, settings) == 0
    assert (jobs[0].source, jobs[0].output) == (arguments.source, arguments.output)


def test_an_unknown_scheme_fails_the_command_without_a_traceback(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before Ray is started."""
    arguments = parse()
    arguments.output = "ftp://host/out"
    assert command.run(arguments, settings) == 1
    assert "unknown scheme 'ftp'; use a path, s3:// or gs://" in capsys.readouterr().err


def test_a_snapshot_tells_rate_share_and_time_left() -> None:
    """From this run's rows alone."""
    snapshot = Snapshot(rows_done=250, rows_total=1000, tokens=9000, dead=2, elapsed_s=5.0)
    assert snapshot.describe() == (
        "250 of 1,000 rows (25 %), 50.0 rows/s, 9,000 tokens, 2 dead, 0:00:15 left"
    )


def test_a_log_gets_a_line_every_few_seconds_and_the_last_one() -> None:
    """However often numbers come."""
    now, stream = [0.0], io.StringIO()
    lines = Lines(stream, lambda: now[0])
    for second in range(13):
        now[0] = float(second)
        lines.update(Snapshot(second, 12, 0, 0, float(second)))
    shown = [line.split(" ", 1)[0] for line in stream.getvalue().splitlines()]
    assert shown == ["0", "5", "10", "12"]


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    """Bars in a log file are noise."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, bar in ((Terminal(), True), (io.StringIO(), False)):
        with ShowProgress(stream) as progress:
            progress.stage("starting")
            progress.update(Snapshot(1, 2, 3, 0, 1.0))
        assert ("\x1b[" in stream.getvalue()) is bar
        assert "1 of 2 rows" in stream.getvalue()


def test_a_report_reads_as_a_table(report: Report) -> None:
    """With what a person asks first."""
    report.rows_read = report.rows_written = 1000
    report.run_s = 10.0
    report.dead_reasons = {"null": 2}
    text = report.to_text()
    assert "100.0 rows/s" in text
    assert "null 2" in text


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_no_ray_listens_is_refused_at_once(make_job: Job, address: str) -> None:
    """Ray itself would go on trying for many minutes."""
    from pipelines.ray_executor import RayExecutor

    with (
        pytest.raises(ConfigError, match=f"no Ray at {address}"),
        RayExecutor(make_job(address=address)),
    ):
        pass


def test_a_cluster_whose_token_is_not_known_is_refused_in_a_line(
    make_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own error is no RuntimeError."""
    import ray.exceptions

    from pipelines.ray_executor import RayExecutor

    def refuse(**_: Any) -> None:
        raise ray.exceptions.AuthenticationError("no authentication token was found")

    monkeypatch.setattr("ray.init", refuse)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=f"no Ray at {address}: AuthenticationError: no auth"),
            RayExecutor(make_job(address=address)),
        ):
            pass


def test_a_sink_is_the_jobs_and_a_bad_one_is_refused_in_a_line(
    settings: Settings, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report says what it was fed."""
    args = parse("--sink", "/data/docs.lance")
    job = command.make_job(args, settings, **command._run_options(args))
    assert job.sink is not None
    assert (job.sink.kind, job.sink.name) == ("lance", "docs.lance")
    assert command.run(parse("--sink", "mysql://host/db"), settings) == 1
    assert capsys.readouterr().err.startswith("omai-ray: sink mysql://… is of no known kind")
    report.sink, report.sink_rows = job.sink.shown, 1234
    assert "/data/docs.lance: 1,234 rows fed" in report.to_text()
