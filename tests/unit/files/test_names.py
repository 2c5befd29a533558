from __future__ import annotations

import pytest

from omai_ray.errors import InvalidRequest
from omai_ray.files.names import file_id, file_name, is_file_id


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("input.jsonl", "input.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ada\\input.jsonl", "input.jsonl"),
        ("a\nb\r\0c\x7f.jsonl", "abc.jsonl"),
        ("%2e%2e%2fpasswd", "%2e%2e%2fpasswd"),
        ("\u202etxt.exe", "txt.exe"),
        ("\ud800a", "a"),
        ("über 1.jsonl", "über 1.jsonl"),
        ("x" * 255, "x" * 255),
    ],
)
@pytest.mark.fault(22)
def test_a_filename_is_one_line_without_a_path(given: str, expected: str) -> None:
    """It is what its owner calls the file; it names nothing in storage."""
    assert expected == file_name(given)


@pytest.mark.parametrize("given", ["", "..", "a/..", "\0", "x" * 256])
@pytest.mark.fault(22)
def test_a_filename_of_which_nothing_is_left_or_too_much_is_refused(given: str) -> None:
    """The field is named."""
    with pytest.raises(InvalidRequest, match="Invalid 'file': its filename"):
        file_name(given)


def test_ids_sort_as_their_files_were_made() -> None:
    """Whatever the collation: digits and small letters, all of one length."""
    ids = [file_id(second / 10) for second in range(17_000_000_000, 17_000_000_400, 7)]
    assert ids == sorted(ids)
    assert all(map(is_file_id, ids))
    assert len({len(one) for one in ids}) == 1


@pytest.mark.parametrize("text", ["", "file-", "file-" + "g" * 31, "file-" + "0" * 30, "../x"])
@pytest.mark.fault(22)
def test_what_is_no_id_is_never_looked_for(text: str) -> None:
    """Neither in SQL nor in storage."""
    assert not is_file_id(text)
