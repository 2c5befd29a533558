from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from omai_ray.catalog import ModelSpec
from pipelines.job import EmbedJob
from pipelines.report import Report

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "search.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, engine: Any) -> ModuleType:
    """Load the example, its model replaced."""
    spec = importlib.util.spec_from_file_location("search_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "build_engine", lambda spec: engine)
    model = ModelSpec(name="fake", task="embedding", source="nowhere")
    monkeypatch.setattr(module, "choose_model", lambda name, settings: model)
    return module


@pytest.fixture
def output(write_corpus: Corpus, make_job: Job, run: Run) -> Path:
    """Embed two files and a row that is dead."""
    write_corpus(
        {"a.parquet": ["one", "one two three", None], "d=1/b.parquet": ["seven eight nine ten"]}
    )
    return Path(run(make_job(dtype="float16")).output)


def test_a_rows_own_text_finds_it_first(
    example: ModuleType, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a cosine of one, its file and its columns; no more rows than asked for."""
    assert example.main([str(output), "one two three", "--top", "2"]) == 0
    first, text, second, _ = capsys.readouterr().out.splitlines()
    assert first.split() == ["1", "1.000", "a.parquet", "id=1"]
    assert text.strip() == "one two three"
    assert second.startswith(" 2  0.")


def test_batches_and_files_are_searched_alike(
    example: ModuleType,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The best of each is kept, whatever comes after it."""
    example.main([str(output), "seven eight nine ten"])
    whole = capsys.readouterr().out
    monkeypatch.setattr(example, "BATCH_ROWS", 1)
    example.main([str(output), "seven eight nine ten"])
    assert capsys.readouterr().out == whole
    assert "d=1/b.parquet" in whole.splitlines()[0]


def test_another_models_vectors_are_not_searched(
    example: ModuleType, output: Path, engine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Naming what differs."""
    engine.provenance = {"pooling": "mean", "prompt": ""}
    assert example.main([str(output), "x"]) == 1
    assert "pooling, prompt of 'fake' here differ" in capsys.readouterr().err


def test_a_query_may_have_a_prompt_of_its_own(
    example: ModuleType, output: Path, engine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """All else is as it was."""
    engine.provenance = {"pooling": "none", "prompt": "query: "}
    assert example.main([str(output), "one", "--prompt", "query"]) == 0
    assert example.main([str(output), "one"]) == 1
    assert "prompt of 'fake' here differ" in capsys.readouterr().err


def test_what_no_job_wrote_is_refused(
    example: ModuleType, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, without a traceback."""
    for path in (tmp_path / "in", tmp_path / "nowhere"):
        assert example.main([str(path), "x"]) == 1
    wrong, absent = capsys.readouterr().err.splitlines()
    assert wrong.endswith("in: holds no file that `omai-ray embed` wrote")
    assert absent.endswith("nowhere: no such directory")


def test_of_a_text_in_chunks_the_chunk_is_shown(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of one that was not cut, its beginning."""
    row = {"text": "one two three", "chunk": 1, "chunk_start": 4, "chunk_end": 7}
    hits = [example.Hit(0.5, "a.parquet", row)]
    facts = {"omai.text_column": "text", "omai.chunking": '{"pool": null}'}
    example.show(hits, facts)
    example.show(hits, facts | {"omai.chunking": '{"pool": "mean"}'})
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[1::2]] == ["two", "one two three"]
