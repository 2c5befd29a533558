from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest

from omai_ray.batches import check
from omai_ray.batches.check import CheckedInput, InvalidInput, check_input
from omai_ray.batches.lines import EMBEDDINGS, read_lines
from omai_ray.errors import ModelNotFound
from tests.unit.batches.conftest import CHAT, jsonl, request

LONGEST = 400


def resolve(name: str) -> str:
    """Know one model, by two names."""
    if name not in ("omai-gpt-4", "gpt-4"):
        raise ModelNotFound(f"The model '{name}' does not exist.")
    return "omai-gpt-4"


def checked(lines: Sequence[Any], endpoint: str = CHAT) -> CheckedInput:
    """Check an input."""
    return check_input(io.BytesIO(jsonl(lines)), endpoint, resolve, LONGEST)


def problems(lines: Sequence[Any], endpoint: str = CHAT) -> list[tuple[str, int | None]]:
    """Return the codes of what is wrong with an input, and the lines."""
    with pytest.raises(InvalidInput) as caught:
        checked(lines, endpoint)
    return [(problem.code, problem.line) for problem in caught.value.problems]


def embedding(custom_id: str, given: Any) -> dict[str, Any]:
    """Return a line that asks for vectors."""
    return request(custom_id, url=EMBEDDINGS, body={"model": "omai-gpt-4", "input": given})


def nested(levels: int) -> list[Any]:
    """Return a list in so many lists."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_a_body_may_be_as_deep_as_online() -> None:
    """And no deeper."""
    body = {"model": "gpt-4", "x": nested(63)}
    assert 1 == checked([request("a") | {"body": body}]).requests


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "invalid_json_line"),
        ("[]", "invalid_json_line"),
        ('{"custom_id": NaN}', "invalid_json_line"),
        (request("a") | {"method": "GET"}, "invalid_method"),
        (request("a") | {"url": "/v1/embeddings"}, "mismatched_url"),
        (request("a") | {"body": []}, "invalid_body"),
        (request("a") | {"body": {"model": "gpt-4", "x": nested(64)}}, "invalid_json"),
        (request("a") | {"body": {}}, "missing_required_parameter"),
        (request("a") | {"body": {"model": 1}}, "missing_required_parameter"),
        (request("a") | {"body": {"model": "none"}}, "model_not_found"),
        (request("a") | {"body": {"model": "gpt-4", "stream": True}}, "unsupported_parameter"),
        (request("a") | {"priority": 1}, "unknown_parameter"),
        ({"custom_id": "a"}, "missing_required_parameter"),
        (request(""), "invalid_custom_id"),
        (request("x" * 513, "y" * 500), "line_too_long"),
        (request(1), "invalid_custom_id"),  # type: ignore[arg-type]
        (request("first"), "duplicate_custom_id"),
    ],
)
def test_a_line_that_cannot_be_a_request_is_named_by_its_number(line: Any, code: str) -> None:
    """In the middle of good ones, blank lines counting as lines."""
    assert [(code, 3)] == problems([request("first"), "", line, request("last")])


def test_all_requests_name_one_model_whatever_they_call_it() -> None:
    """An alias is the same model; another is refused."""
    alias = request("b") | {"body": {"model": "gpt-4", "messages": []}}
    found = checked([request("a"), alias])
    assert ("omai-gpt-4", 2) == (found.model, found.requests)

    def any_model(name: str) -> str:
        return name

    with pytest.raises(InvalidInput) as caught:
        check_input(io.BytesIO(jsonl([request("a"), alias])), CHAT, any_model, LONGEST)
    assert ["mismatched_model"] == [problem.code for problem in caught.value.problems]


def test_an_input_without_requests_is_refused() -> None:
    """Be it empty or blank."""
    assert [("empty_file", None)] == problems([])
    assert [("empty_file", None)] == problems(["", "  "])


def test_only_so_many_problems_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the input is not read then."""
    monkeypatch.setattr(check, "MAX_ERRORS", 3)
    assert [("invalid_json_line", n) for n in (1, 2, 3)] == problems(["{"] * 10)


def test_requests_and_embedding_inputs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists count by their texts, or lists of tokens; one list of tokens is one."""
    monkeypatch.setattr(check, "MAX_REQUESTS", 3)
    monkeypatch.setattr(check, "MAX_INPUTS", 5)
    assert 3 == checked([request(str(n)) for n in range(3)]).requests
    assert ("too_many_requests", None) in problems([request(str(n)) for n in range(4)])
    fits = [embedding("a", ["x", "y"]), embedding("b", [[1], [2]]), embedding("c", [1, 2, 3])]
    assert 3 == checked(fits, EMBEDDINGS).requests
    more = [*fits[:2], embedding("c", ["x", "y"])]
    assert [("too_many_inputs", None)] == problems(more, EMBEDDINGS)


def test_stretches_hold_every_line_and_are_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bounded in lines, bytes and inputs; blank lines shift no number."""
    monkeypatch.setattr(check, "UNIT_LINES_OF_TEXT", 2)
    lines = [request("a"), "", request("b"), request("c"), "", "", request("d"), request("e")]
    content = jsonl(lines)
    found = checked(lines)
    assert found.stretches == checked(lines).stretches
    assert [(1, 2), (4, 2), (8, 1)] == [(s.first_line, s.lines) for s in found.stretches]
    read = []
    for stretch in found.stretches:
        part = io.BytesIO(content[stretch.offset : stretch.offset + stretch.length])
        read += [(raw.number, raw.content) for raw in read_lines(part, 10**6, stretch.first_line)]
    whole = [(raw.number, raw.content) for raw in read_lines(io.BytesIO(content), 10**6)]
    assert whole == read
    monkeypatch.setattr(check, "UNIT_INPUTS", 3)
    many = [embedding(str(n), ["x", "y"]) for n in range(3)]
    assert [1, 1, 1] == [s.lines for s in checked(many, EMBEDDINGS).stretches]
    monkeypatch.setattr(check, "UNIT_BYTES", 1000)
    gaps = [request("a"), *[""] * 1000, request("b")]
    assert [1, 1] == [s.lines for s in checked(gaps).stretches]
    monkeypatch.setattr(check, "UNIT_BYTES", 1)
    assert [1] * 5 == [s.lines for s in checked(lines).stretches]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("length", range(6, 14))
def test_lines_are_read_whole_up_to_the_longest_that_may_be(end: bytes, length: int) -> None:
    """A longer one is skipped to its end, and those after it keep their places."""
    first = b"x" * length
    content = first + end + (b"next" + end if end else b"")
    lines = list(read_lines(io.BytesIO(content), 10))
    assert (1, 0, len(first + end)) == (lines[0].number, lines[0].offset, lines[0].length)
    assert (first if length <= 10 else None) == lines[0].content
    if end:
        assert (2, len(first + end), b"next") == (
            lines[1].number,
            lines[1].offset,
            lines[1].content,
        )


def test_carriage_returns_hide_no_line_that_is_too_long() -> None:
    """What ends in some where it is cut goes on behind them."""
    lines = list(read_lines(io.BytesIO(b"x" * 10 + b"\r\r" + b"y" * 30 + b"\nz\n"), 10))
    assert [(1, None), (2, b"z")] == [(line.number, line.content) for line in lines]
