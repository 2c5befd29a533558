"""Checking a batch's input, and dividing it into units of work: the same way every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from omai_ray.batches.lines import (
    EMBEDDINGS,
    BadLine,
    Line,
    RawLine,
    count_inputs,
    model_of,
    parse_line,
    read_lines,
)
from omai_ray.errors import OMAiError

MAX_REQUESTS = 50_000
MAX_INPUTS = 50_000
MAX_ERRORS = 100
BYTES_PER_TOKEN = 4
"""What a body's tokens are estimated by, for the limit of enqueued tokens."""

# What is redone where a worker dies, and how often progress shows; what one holds in memory.
UNIT_LINES = {EMBEDDINGS: 1000}
UNIT_LINES_OF_TEXT = 64
UNIT_BYTES = 4 << 20
UNIT_INPUTS = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with an input, as a batch's errors list it; line: None for all of it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(slots=True)
class Stretch:
    """Lines that are answered as one unit: where they are in the input, and how many."""

    offset: int
    length: int
    first_line: int
    lines: int


@dataclass(frozen=True, slots=True)
class CheckedInput:
    """An input that can be run. model: its name in the catalog; tokens: an estimate."""

    model: str
    requests: int
    tokens: int
    stretches: list[Stretch]


class InvalidInput(Exception):
    """An input that cannot be run; problems: at most MAX_ERRORS."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def check_input(
    stream: BinaryIO, endpoint: str, resolve: Callable[[str], str], longest: int
) -> CheckedInput:
    """Read an input to its end. Raises InvalidInput.

    resolve: what a request calls a model -> its name in the catalog; raises OMAiError for one that
    cannot be used. longest: bytes that a line may have.
    """
    checker = _Checker(endpoint, resolve, longest)
    for raw in read_lines(stream, longest):
        checker.add(raw)
        if checker.full:
            break
    return checker.result()


class _Checker:
    """Goes through an input's lines; holds their custom_ids, and nothing else of them."""

    def __init__(self, endpoint: str, resolve: Callable[[str], str], longest: int) -> None:
        self._endpoint = endpoint
        self._resolve = resolve
        self._longest = longest
        self._unit_lines = UNIT_LINES.get(endpoint, UNIT_LINES_OF_TEXT)
        self._problems: list[Problem] = []
        self._seen: set[str] = set()
        self._models: dict[str, str | OMAiError] = {}
        self._model: str | None = None
        self._requests = 0
        self._inputs = 0
        self._bytes = 0
        self._stretches: list[Stretch] = []
        self._open_inputs = 0

    @property
    def full(self) -> bool:
        """Whether more of the input would change nothing."""
        return len(self._problems) >= MAX_ERRORS or self._requests > MAX_REQUESTS

    def add(self, raw: RawLine) -> None:
        """Check a line."""
        self._requests += 1
        try:
            inputs = self._check(raw)
        except BadLine as bad:
            self._problems.append(Problem(bad.code, bad.message, bad.param, raw.number))
            return
        self._inputs += inputs
        self._bytes += raw.length
        self._extend(raw, inputs)

    def _check(self, raw: RawLine) -> int:
        if raw.content is None:
            raise BadLine(
                "line_too_long", f"This line is longer than {self._longest} bytes, the limit."
            )
        line = parse_line(raw.content, self._endpoint)
        if line.custom_id in self._seen:
            raise BadLine(
                "duplicate_custom_id",
                "The custom_id of this line was used by an earlier one: each must be unique.",
                "custom_id",
            )
        self._seen.add(line.custom_id)
        self._check_model(line)
        if line.body.get("stream"):
            raise BadLine(
                "unsupported_parameter", "'stream' is not supported in batches.", "body.stream"
            )
        return count_inputs(line) if self._endpoint == EMBEDDINGS else 0

    def _check_model(self, line: Line) -> None:
        asked = model_of(line)
        if asked not in self._models:
            try:
                self._models[asked] = self._resolve(asked)
            except OMAiError as error:
                self._models[asked] = error
        found = self._models[asked]
        if isinstance(found, OMAiError):
            raise BadLine(found.code or "invalid_model", found.message, "body.model")
        if self._model is None:
            self._model = found
        elif found != self._model:
            raise BadLine(
                "mismatched_model",
                f"All requests of a batch must name one model: this is not '{self._model}'.",
                "body.model",
            )

    def _extend(self, raw: RawLine, inputs: int) -> None:
        """Put a line into the last stretch, or the first of a new one where that is full."""
        last = self._stretches[-1] if self._stretches else None
        if (
            last is None
            or last.lines >= self._unit_lines
            or raw.offset + raw.length - last.offset > UNIT_BYTES  # blank lines between included
            or self._open_inputs + inputs > UNIT_INPUTS
        ):
            last = Stretch(raw.offset, 0, raw.number, 0)
            self._stretches.append(last)
            self._open_inputs = 0
        last.length = raw.offset + raw.length - last.offset
        last.lines += 1
        self._open_inputs += inputs

    def result(self) -> CheckedInput:
        """Return what was found. Raises InvalidInput."""
        problems = self._problems[:MAX_ERRORS]
        if self._requests > MAX_REQUESTS:
            problems.insert(
                0,
                Problem(
                    "too_many_requests",
                    f"The input has more than {MAX_REQUESTS} requests, the limit of a batch.",
                ),
            )
        if self._inputs > MAX_INPUTS:
            problems.insert(
                0,
                Problem(
                    "too_many_inputs",
                    f"The input has {self._inputs} embedding inputs: at most {MAX_INPUTS} are "
                    "accepted across all requests of a batch.",
                ),
            )
        if not self._requests:
            problems.append(Problem("empty_file", "The input file has no requests."))
        if problems or self._model is None:
            raise InvalidInput(problems[:MAX_ERRORS])
        tokens = -(-self._bytes // BYTES_PER_TOKEN)
        return CheckedInput(self._model, self._requests, tokens, self._stretches)
