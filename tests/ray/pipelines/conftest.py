"""A small corpus, and what undisturbed runs make of it: the real model, and an instant engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omai_ray.catalog import default_models
from pipelines.embed_corpus import embed_corpus
from pipelines.job import EmbedJob
from pipelines.report import Report
from tests.unit.pipelines.conftest import FakeEngine

ROWS = 60
UNIT_ROWS = 12
MODEL = default_models()[1]
TEXT = "rays of light carry small packets of energy across an empty evening sky"


class InstantEngine(FakeEngine):
    """For tests that no model matters to: loading one takes a worker seconds."""

    context = 32  # no text of the corpus is cut


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two files with row groups, and one bad row."""
    root = tmp_path_factory.mktemp("corpus")
    texts = [f"{TEXT[: i % 70 + 1]} {i}" for i in range(ROWS)]
    files: dict[str, list[str | None]] = {
        "a.parquet": [*texts[:40], None],
        "d=1/b.parquet": [*texts[40:]],
    }
    for name, part in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        table = pa.table({"id": range(len(part)), "text": pa.array(part, pa.string())})
        pq.write_table(table, root / name, row_group_size=18)
    return root


@pytest.fixture(scope="session")
def make_job(corpus: Path) -> Callable[..., EmbedJob]:
    """Return a function that makes a job of the corpus."""

    def make(output: Path | str, **changes: Any) -> EmbedJob:
        values: dict[str, Any] = {
            "source": str(corpus),
            "output": output,
            "column": "text",
            "model": MODEL,
            "unit_rows": UNIT_ROWS,
            "actors": 2,
        }
        return EmbedJob(**(values | changes))

    return make


@pytest.fixture(scope="session")
def undisturbed(
    ray_cluster: None,
    make_job: Callable[..., EmbedJob],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Report]:
    """Run the job once without trouble; return its output and report."""
    job = make_job(tmp_path_factory.mktemp("undisturbed") / "out")
    return Path(job.output), embed_corpus(job)


@pytest.fixture(scope="session")
def make_instant_job(make_job: Callable[..., EmbedJob]) -> Callable[..., EmbedJob]:
    """Return a function that makes a job whose workers load no model."""
    return partial(make_job, engine_factory=InstantEngine)


@pytest.fixture(scope="session")
def undisturbed_instant(
    ray_cluster: None,
    make_instant_job: Callable[..., EmbedJob],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Run that job once without trouble; return its output."""
    job = make_instant_job(tmp_path_factory.mktemp("undisturbed-instant") / "out")
    embed_corpus(job)
    return Path(job.output)
