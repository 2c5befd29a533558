from __future__ import annotations

import pytest

from omai_ray.spelling import meant


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prot", "port"),
        ("maxTokens", "max_tokens"),
        ("min_tokens", None),  # the opposite of the one that is most like it
        ("colour", None),
        ("", None),
        ("port" * 100, None),
    ],
)
def test_the_likeliest_name_is_found(name: str, expected: str | None) -> None:
    """None is better than one that misleads."""
    assert meant(name, ["port", "max_tokens", "temperature"]) == expected
