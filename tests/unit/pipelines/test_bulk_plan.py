from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omai_ray.errors import ConfigError
from pipelines.plan import (
    check_columns,
    choose_unit_rows,
    plan_units,
    read_footers,
    split_rows,
)
from pipelines.source import check_apart, find_files
from pipelines.text_source import column_source

Corpus = Callable[..., Path]


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 40))
def test_units_cover_every_row_once_in_order_and_none_is_too_large(
    groups: list[int], unit_rows: int
) -> None:
    """Units are adjacent ranges from the first row to the last."""
    ranges = list(split_rows(groups, unit_rows))
    ends = [first + rows for first, rows in ranges]
    assert [first for first, _ in ranges] == [0, *ends[:-1]]
    assert ends[-1] == sum(groups)
    assert all(rows <= unit_rows for _, rows in ranges)


def test_whole_row_groups_are_joined_and_larger_ones_cut_evenly() -> None:
    """A row group is cut only where it is larger than a unit may be."""
    assert list(split_rows([3, 3, 3, 10, 2], 6)) == [(0, 6), (6, 3), (9, 5), (14, 5), (19, 2)]


def test_a_file_without_rows_is_one_unit() -> None:
    """The output mirrors empty files too."""
    assert list(split_rows([], 6)) == [(0, 0)]


def test_five_thousand_rows_make_at_least_ten_units() -> None:
    """So that progress moves, and both cores of a small machine have work."""
    assert len(list(split_rows([5000], choose_unit_rows(5000)))) >= 10


def test_units_are_small_enough_to_redo_however_large_the_corpus() -> None:
    """A lost unit costs minutes, not hours."""
    assert choose_unit_rows(10**9) == 32_768


def test_a_plan_is_the_same_every_time(write_corpus: Corpus) -> None:
    """Order and names depend on the input alone."""
    root = write_corpus({"b.parquet": ["x"] * 9, "a/c.parquet": ["y"] * 4})
    plans = [plan_units(read_footers(find_files(str(root)))[0], 4, "settings") for _ in range(2)]
    assert plans[0] == plans[1]
    assert [unit.output for unit in plans[0]] == [
        "a/c.parquet",
        "b-part-00000-of-00003.parquet",
        "b-part-00001-of-00003.parquet",
        "b-part-00002-of-00003.parquet",
    ]


def test_a_replaced_file_or_other_settings_change_the_units_key(write_corpus: Corpus) -> None:
    """A key names the bytes that a unit's output will have."""
    files = find_files(str(write_corpus({"a.parquet": ["x"]})))
    before = plan_units(read_footers(files)[0], 4, "settings")[0].key
    other = plan_units(read_footers(files)[0], 4, "other")[0].key
    files = find_files(str(write_corpus({"a.parquet": ["x", "y"]})))
    after = plan_units(read_footers(files)[0], 4, "settings")[0].key
    assert len({before, other, after}) == 3


def test_two_inputs_that_would_share_an_output_are_refused(write_corpus: Corpus) -> None:
    """A split file's part names can meet an input's own name."""
    root = write_corpus({"a.parquet": ["x"] * 4, "a-part-00001-of-00002.parquet": ["y"]})
    footers, _ = read_footers(find_files(str(root)))
    with pytest.raises(ConfigError, match=r"a-part-00001-of-00002\.parquet"):
        plan_units(footers, 2, "settings")


def test_a_corrupt_footer_rejects_its_file_alone(write_corpus: Corpus) -> None:
    """The others are planned."""
    root = write_corpus({"a.parquet": ["x"], "b.parquet": ["y"]})
    (root / "b.parquet").write_bytes(b"PAR1 not really")
    footers, rejected = read_footers(find_files(str(root)))
    assert [footer.file.name for footer in footers] == ["a.parquet"]
    assert [reject.file.name for reject in rejected] == ["b.parquet"]


def test_an_input_where_nothing_is_parquet_is_refused(tmp_path: Path) -> None:
    """Such as a CSV file by mistake; the message says what parquet makes of it."""
    (tmp_path / "a.csv").write_text("text\nhello\n")
    with pytest.raises(ConfigError, match=r"none of the 1 input files.*a\.csv"):
        read_footers(find_files(str(tmp_path / "a.csv")))


@pytest.mark.parametrize(
    ("column", "columns", "message"),
    [
        ("body", None, r"a\.parquet: no column 'body' \(there are: id, text\)"),
        ("text", ["id", "url"], r"a\.parquet: no column 'url' \(there are: id, text\)"),
        ("id", None, r"column 'id' is int64, not text; text columns: text"),
    ],
)
@pytest.mark.fault(27)
def test_a_column_that_cannot_be_used_is_named_with_its_file_and_the_others(
    write_corpus: Corpus, column: str, columns: list[str] | None, message: str
) -> None:
    """Before any work starts."""
    footers, _ = read_footers(find_files(str(write_corpus({"a.parquet": ["x"]}))))
    with pytest.raises(ConfigError, match=message):
        check_columns(footers, column_source(column), columns)


def test_a_column_called_embedding_is_not_written_over(tmp_path: Path) -> None:
    """It must be left out by name."""
    pq.write_table(pa.table({"text": ["x"], "embedding": [1.0]}), tmp_path / "a.parquet")
    footers, _ = read_footers(find_files(str(tmp_path)))
    with pytest.raises(ConfigError, match="--columns"):
        check_columns(footers, column_source("text"), None)
    check_columns(footers, column_source("text"), ["text"])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_arrow_text_type_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    """Dictionary-encoded ones too."""
    table = pa.table({"a": pa.array(["x"], kind), "b": pa.array(["x"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    footers, _ = read_footers(find_files(str(tmp_path)))
    check_columns(footers, column_source("a"), None)
    check_columns(footers, column_source("b"), None)


@pytest.mark.parametrize("source", ["missing", "missing/*.parquet", "empty"])
def test_an_input_without_files_is_refused(tmp_path: Path, source: str) -> None:
    """The message names the input."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=source.split("/", maxsplit=1)[0]):
        find_files(str(tmp_path / source))


def test_names_that_readers_skip_are_skipped(write_corpus: Corpus) -> None:
    """Such as another run's own records."""
    root = write_corpus({"a.parquet": ["x"], "_tmp/b.parquet": ["y"], ".c.parquet": ["z"]})
    assert [file.name for file in find_files(str(root))] == ["a.parquet"]


def test_a_glob_keeps_the_tree_below_its_fixed_part(write_corpus: Corpus) -> None:
    """So that equal names in two directories stay apart."""
    root = write_corpus({"d=1/a.parquet": ["x"], "d=2/a.parquet": ["y"], "e/b.parquet": ["z"]})
    names = [file.name for file in find_files(str(root / "d=*" / "*.parquet"))]
    assert names == ["d=1/a.parquet", "d=2/a.parquet"]


def test_an_output_inside_the_input_is_refused(write_corpus: Corpus) -> None:
    """The next run would read it."""
    root = write_corpus({"a.parquet": ["x"]})
    with pytest.raises(ConfigError, match="inside the input"):
        check_apart(str(root), root / "out")
    check_apart(str(root), root.parent / "out")
    check_apart(str(root / "missing"), root / "out")  # find_files says what is wrong with it


@pytest.mark.parametrize(
    ("pattern", "inside"), [("*.parquet", False), ("*/*.parquet", True), ("**/*.parquet", True)]
)
def test_an_output_below_a_glob_is_refused_where_the_glob_reaches_it(
    write_corpus: Corpus, pattern: str, inside: bool
) -> None:
    """What is written is in OUT, or deeper."""
    root = write_corpus({"a.parquet": ["x"]})
    with pytest.raises(ConfigError, match="inside the input") if inside else nullcontext():
        check_apart(str(root / pattern), root / "out")
    check_apart(str(root / "*" / "*.parquet"), root / "deep" / "out")


def test_a_local_input_may_be_a_uri(write_corpus: Callable[..., Path]) -> None:
    """A directory, a file or a glob of them."""
    root = write_corpus({"a.parquet": ["x"], "d/b.parquet": ["y"]})
    assert find_files(f"file://{root}") == find_files(str(root))
    assert find_files(f"file://{root}/a.parquet") == find_files(f"{root}/a.parquet")
    assert [file.name for file in find_files(f"file://{root}/*/*.parquet")] == ["d/b.parquet"]
    with pytest.raises(ConfigError, match="lies inside the input"):
        check_apart(f"file://{root}", root / "out")
