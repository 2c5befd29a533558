from __future__ import annotations

import pickle
from typing import Any

import pytest

from omai_ray import errors
from omai_ray.errors import OMAiError, Overloaded, RateLimited


def tree(cls: type[OMAiError]) -> list[type[OMAiError]]:
    """Return a class and all below it."""
    return [cls, *(found for child in cls.__subclasses__() for found in tree(child))]


ALL = [cls for cls in tree(OMAiError) if cls.__module__ == errors.__name__]


def make(cls: type[OMAiError]) -> OMAiError:
    """Return an error of a class."""
    fields: dict[str, Any] = {"headers": {"X-A": "b"}}
    if cls is RateLimited:
        return RateLimited("a message", limited="tokens", **fields)
    return cls("a message", param="p", code="c", **fields)


@pytest.mark.parametrize("cls", ALL)
def test_an_error_crosses_processes_with_all_it_says(cls: type[OMAiError]) -> None:
    """Replicas raise them, the ingress answers with them."""
    error = make(cls)
    copy = pickle.loads(pickle.dumps(error))
    assert type(error) is type(copy)
    assert vars(error) == vars(copy)
    assert error.envelope() == copy.envelope()
    assert str(copy) == "a message"


@pytest.mark.parametrize("cls", ALL)
def test_an_envelope_has_its_four_keys(cls: type[OMAiError]) -> None:
    """All of them, always; an error's status and type are those of the wire."""
    body = make(cls).envelope()["error"]
    assert list(body) == ["message", "type", "param", "code"]
    assert 400 <= cls.status <= 507
    assert body["type"]


def test_a_code_is_the_classes_own_unless_given() -> None:
    """Clients decide by it."""
    assert errors.InvalidRequest("x").code == "invalid_value"
    assert errors.InvalidRequest("x", code="y").code == "y"


def test_rate_limits_have_the_limits_name_as_their_type() -> None:
    """`requests` or `tokens`."""
    assert make(RateLimited).envelope()["error"]["type"] == "tokens"


@pytest.mark.parametrize(
    ("given", "seconds", "milliseconds"),
    [(None, "1", "1000"), ({"Retry-After": "7"}, "7", "7000"), ({"retry-after-ms": "5"}, "1", "5")],
)
def test_an_overload_always_says_when_to_try_again(
    given: dict[str, str] | None, seconds: str, milliseconds: str
) -> None:
    """Both headers, whoever raised it."""
    headers = Overloaded("x", headers=given).headers
    assert (seconds, milliseconds) == (headers["Retry-After"], headers["retry-after-ms"])
