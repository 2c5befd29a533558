"""Every fault of the docs' table has a test, and the table names just the files that have one."""

from __future__ import annotations

from tests.fault_rows import marked_files, outcome_of_rows, rows


def test_every_fault_has_a_marked_test() -> None:
    """Rows 1 to 30."""
    assert list(range(1, 31)) == [row.number for row in rows()]
    assert set(range(1, 31)) == set(marked_files())


def test_the_docs_name_the_files_that_show_a_fault() -> None:
    """All of them, and no other."""
    expected = {row.number: set(row.files) for row in rows() if row.files}
    assert expected == marked_files()


def test_a_fault_failed_if_any_of_its_tests_did() -> None:
    """It passed only if something ran."""
    outcomes = [(1, "passed"), (1, "failed"), (2, "passed"), (2, "skipped"), (3, "skipped")]
    words = [line.split()[:2] for line in outcome_of_rows(outcomes)]
    assert [["1", "failed"], ["2", "passed"], ["3", "skipped"]] == words[:3]
    assert words[3] == ["4", "not"]
