from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omai_ray.errors import ConfigError
from pipelines.errors import OutputMismatch
from pipelines.job import EmbedJob
from pipelines.plan import check_columns, read_footers
from pipelines.report import Report
from pipelines.source import find_files
from pipelines.text_source import read_escapes, template_source

Job = Callable[..., EmbedJob]
Run = Callable[..., Report]
Dead = Callable[[Path], list[tuple[Any, ...]]]


def render(template: str, **columns: Any) -> list[Any]:
    """Return the texts of a template over columns."""
    return template_source(template).texts(pa.RecordBatch.from_pydict(columns))


def test_a_template_joins_columns_and_literal_text() -> None:
    """Columns may come twice and in any order, whatever their names hold."""
    texts = render(
        "{b}: {a}, {a} {{x}} {no space?}", a=["1", "2"], b=["x", "y"], **{"no space?": "pq"}
    )
    assert texts == ["x: 1, 1 {x} p", "y: 2, 2 {x} q"]


def test_a_null_is_empty_and_a_row_of_nulls_is_null() -> None:
    """A blank text is for the caller to refuse."""
    texts = render("{a} {b}", a=["x", None, None, ""], b=["y", "z", None, None])
    assert texts == ["x y", " z", None, " "]


def test_numbers_truth_values_and_times_are_written_as_python_does() -> None:
    """Nanoseconds, which Python's times have not, are left out."""
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, 678)
    columns = {
        "int": pa.array([7]),
        "float": pa.array([1.5]),
        "bool": pa.array([True]),
        "date": pa.array([at.date()]),
        "second": pa.array([at.replace(microsecond=0)], pa.timestamp("s")),
        "ns": pa.array([1_000_000_001], pa.timestamp("ns")),
        "decimal": pa.array([Decimal("1.10")]),
        "word": pa.array(["w"]).dictionary_encode(),
    }
    template = "|".join(f"{{{name}}}" for name in columns)
    (text,) = template_source(template).texts(pa.RecordBatch.from_pydict(columns))
    assert text == "7|1.5|True|2026-01-02|2026-01-02 03:04:05|1970-01-01 00:00:01|1.10|w"


def test_a_field_that_is_not_utf8_spoils_its_row_alone() -> None:
    """As a column of its own does."""
    offsets = pa.py_buffer(np.array([0, 1, 2], dtype=np.int32))
    bad = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xff"))
    first, second = render("{x}{y}", x=bad, y=["b", "c"])
    assert first == "ab"
    assert isinstance(second, UnicodeDecodeError)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{title!r}", "title!r"),
        ("{title:>10}", "title:>10"),
        ("{}", "no column's name"),
        ("{title", "'{title'"),
        ("title}", "'title}'"),
        ("title", "names no column"),
        ("{{title}}", "names no column"),
    ],
)
def test_a_template_that_is_more_than_columns_in_braces_is_refused(
    make_job: Job, template: str, message: str
) -> None:
    """When the job is made; it is shown."""
    with pytest.raises(ConfigError, match=message):
        make_job(column=None, template=template)


@pytest.mark.parametrize("names", ["{id.real}", "{id[0]}", "{0}"])
def test_a_template_reaches_into_no_value(write_corpus: Callable[..., Path], names: str) -> None:
    """What looks like it is the name of a column, and there is none."""
    footers, _ = read_footers(find_files(str(write_corpus({"a.parquet": ["x"]}))))
    with pytest.raises(ConfigError, match=r"a\.parquet: no column '.*\(there are: id, text\)"):
        check_columns(footers, template_source(names), None)


def test_a_templates_column_that_a_later_file_lacks_or_that_is_a_list_is_named(
    tmp_path: Path,
) -> None:
    """Before any work starts."""
    pq.write_table(pa.table({"a": ["x"], "b": [[1.0]]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "b.parquet")
    footers, _ = read_footers(find_files(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"column 'b' is list<.*not of single values.*: a$"):
        check_columns(footers, template_source("{a}{b}"), None)
    with pytest.raises(ConfigError, match=r"b\.parquet: no column 'b' \(there are: a\)"):
        check_columns(footers[1:], template_source("{a}{b}"), None)


def test_a_column_and_a_template_are_not_both_given_nor_neither(make_job: Job) -> None:
    """One of the two says what the text is."""
    for column, template in (("text", "{text}"), (None, None)):
        with pytest.raises(ConfigError, match="by column or by template"):
            make_job(column=column, template=template)


def test_backslashes_of_a_command_line_stand_for_newline_tab_and_themselves() -> None:
    r"""A shell hands `\n` on as two characters."""
    assert read_escapes(r"{a}\n{b}\t\\n \x") == "{a}\n{b}\t\\n \\x"


def test_a_templated_job_dead_letters_and_carries_as_any(
    tmp_path: Path, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """Only the columns carried are written; what the template reads need not be."""
    (tmp_path / "in").mkdir()
    table = pa.table(
        {"id": [0, 1, 2], "a": ["one", None, " "], "b": ["two", None, None], "c": [9, None, None]}
    )
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    job = make_job(column=None, template="{a} {b}\n{c}", columns=("id",))
    run(job)
    assert dead_letters(Path(job.output)) == [
        ("a.parquet", 1, 1, "null"),
        ("a.parquet", 2, 1, "empty"),
    ]
    written = pq.read_table(Path(job.output) / "a.parquet")
    assert written.column_names == ["id", "embedding"]
    assert [vector[1] for vector in written["embedding"].to_pylist()] == [5]
    assert written.schema.metadata[b"omai.text_template"] == b"{a} {b}\n{c}"


def test_a_run_goes_on_with_its_own_template_only(
    write_corpus: Callable[..., Path], make_job: Job, run: Run
) -> None:
    """Another one would mix two kinds of text in an output."""
    write_corpus({"a.parquet": ["x"]})
    run(make_job(column=None, template="{text}"))
    with pytest.raises(OutputMismatch, match=r"template was '\{text\}' and is now '\{text\}\.'"):
        run(make_job(column=None, template="{text}."))


def test_a_row_id_says_which_file_and_row_an_output_row_is_of(
    write_corpus: Callable[..., Path], make_job: Job, run: Run
) -> None:
    """Counted from the file's first row, whatever the units and the dead."""
    texts = [None if i % 3 == 1 else f"w{i}" for i in range(20)]
    write_corpus({"d/a.parquet": texts})
    job = make_job(row_id=True, columns=(), unit_rows=6)
    run(job)
    table = pq.read_table(job.output)
    assert table.column_names == ["source_file", "source_row", "embedding"]
    assert set(table["source_file"].to_pylist()) == {"d/a.parquet"}
    assert table["source_row"].to_pylist() == [i for i in range(20) if i % 3 != 1]


def test_a_column_that_would_be_written_over_is_refused_by_name(
    tmp_path: Path, make_job: Job, run: Run
) -> None:
    """Unless it is not carried."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["x"], "source_row": [1]}), tmp_path / "in" / "a.parquet")
    with pytest.raises(ConfigError, match=r"has a column 'source_row' already.*--columns"):
        run(make_job(row_id=True))
    run(make_job(row_id=True, columns=("text",)))


def test_a_date_that_python_does_not_have_spoils_its_row_alone(
    tmp_path: Path, make_job: Job, run: Run, dead_letters: Dead
) -> None:
    """Parquet's dates go on for millions of years."""
    (tmp_path / "in").mkdir()
    days = pa.array([0, 100_000_000, None], pa.int32()).view(pa.date32())
    seconds = pa.array([0, 0, 2**50], pa.int64()).view(pa.timestamp("s"))
    table = pa.table({"day": days, "at": seconds})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    job = make_job(column=None, template="{day} {at}", columns=("day",))
    assert run(job).total_rows_written == 1
    assert dead_letters(Path(job.output)) == [
        ("a.parquet", 1, 1, "unreadable_value"),
        ("a.parquet", 2, 1, "unreadable_value"),
    ]
