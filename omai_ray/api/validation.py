"""A request's body: bytes to a checked model, or an error that names the field and the limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from omai_ray.api.schemas.common import UNKNOWN_TAG
from omai_ray.errors import InvalidRequest, UnsupportedMediaType
from omai_ray.nesting import MAX_DEPTH, TOO_DEEP, is_deeper
from omai_ray.spelling import meant

Body = TypeVar("Body", bound=BaseModel)
Query = TypeVar("Query", bound=BaseModel)
_MAX_PROBLEMS = 1000
_MAX_GUESSED = 20  # of the unknown fields: each takes a tenth of a millisecond
_MAX_PARAM = 200

_JSON_TYPES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
_MEANT = {
    "messages": ("input", "prompt"),
    "input": ("messages", "prompt"),
    "inputs": ("input", "messages", "prompt"),
    "prompt": ("messages", "input"),
    "text": ("input", "messages", "prompt"),
    "texts": ("input", "documents"),
    "system": ("instructions", "messages"),
    "instructions": ("messages",),
    "max_tokens": ("max_output_tokens",),
    "max_completion_tokens": ("max_output_tokens", "max_tokens"),
    "max_output_tokens": ("max_completion_tokens", "max_tokens"),
    "max_new_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "response_format": ("text",),
    "stop_sequences": ("stop",),
    "functions": ("tools",),
    "passages": ("documents",),
}
"""A field's name in other requests and other servers -> its names here, the first that there is."""
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


async def read_body(request: Request, model: type[Body]) -> Body:
    """Return the JSON body as `model`.

    Raises InvalidRequest in OpenAI's words (param and code set), UnsupportedMediaType where the
    body is declared to be something else.
    """
    declared = request.headers.get("content-type", "application/json")
    if declared.split(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(
            "The body must be JSON: send the header 'Content-Type: application/json'."
        )
    return parse_body(await request.body(), model)


async def read_optional_body(request: Request, model: type[Body]) -> Body | None:
    """Return the JSON body as `model`, None where there is none. Raises as read_body does."""
    return await read_body(request, model) if (await request.body()).strip() else None


def parse_body(raw: bytes, model: type[Body]) -> Body:
    """Return JSON bytes as `model`, errors as above. NaN and invalid UTF-8 are no JSON."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {error.msg} "
            f"(line {error.lineno}, column {error.colno}).",
            code="invalid_json",
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The body must be a JSON object, but got {_kind(value)} instead.", code="invalid_type"
        )
    if is_deeper(value, MAX_DEPTH):
        raise InvalidRequest(TOO_DEEP, code="invalid_json")
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        raise explain(error, value, _names(model)) from None


def parse_texts(values: Mapping[str, str], model: type[Query]) -> Query:
    """Return texts by name as `model`, numbers read where it wants them. Raises InvalidRequest."""
    hints = get_type_hints(model)
    kinds = {field.alias or name: hints[name] for name, field in model.model_fields.items()}
    given = {name: _number(text, kinds.get(name)) for name, text in values.items()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise explain(error, given, _names(model)) from None


def read_query(request: Request, model: type[Query]) -> Query:
    """Return a URL's query as `model`. Raises InvalidRequest, as read_body does."""
    pairs = request.query_params.multi_items()
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"The query has '{repeated[:80]}' more than once.", param=repeated)
    return parse_texts(values, model)


def _number(text: str, kind: Any) -> str | int:
    """Return what a text says where a number is wanted, so that errors can speak of it."""
    wanted = int in (kind, *get_args(kind))
    return int(text) if wanted and re.fullmatch(r"-?[0-9]{1,18}", text) else text


def explain(error: ValidationError, value: Any, fields: Collection[str] = ()) -> InvalidRequest:
    """Return the failure that lies deepest in the body, in OpenAI's words.

    A union reports every branch it tried; the one that got furthest is the one that was meant:
    deepest first, then one that found the right type and another fault. fields: those of the body,
    one of which an unknown one may mean.
    """
    if error.error_count() > _MAX_PROBLEMS:  # describing a million of them would take seconds
        return InvalidRequest(
            f"The body has {error.error_count()} unknown or invalid fields.", code="invalid_value"
        )
    problems = [(_path(problem, value), problem) for problem in error.errors()]
    # A field by a wrong name is also missing under its own: the name is what is wrong.
    unknown = [str(path[0]) for path, problem in problems if _is_unknown(path, problem)]
    guesses = {name: _meant(name, fields) for name in unknown[:_MAX_GUESSED]}
    named = set(guesses.values())
    problems = [p for p in problems if p[1]["type"] != "missing" or _name(p[0]) not in named]
    path, problem = max(problems, key=lambda p: (len(p[0]), p[1]["type"] not in _EXPECTED))
    param = _name(path)
    same = [other for other_path, other in problems if other_path == path]
    message, code = _describe(problem, param, same)
    if _is_unknown(path, problem) and (guess := guesses.get(param)):
        message += f" Did you mean '{guess}'?"
    return InvalidRequest(message, param=param or None, code=code)


def _is_unknown(path: list[int | str], problem: ErrorDetails) -> bool:
    return problem["type"] == "extra_forbidden" and len(path) == 1


def _names(model: type[BaseModel]) -> list[str]:
    """Return the fields of a body that may be given: one that must be null is refused by name."""
    fields = model.model_fields.items()
    return [field.alias or name for name, field in fields if field.annotation is not type(None)]


def _meant(name: str, fields: Collection[str]) -> str | None:
    """Return the field that somebody may have meant by an unknown one's name."""
    elsewhere = next((other for other in _MEANT.get(name, ()) if other in fields), None)
    return elsewhere or meant(name, fields)


def _path(problem: ErrorDetails, value: Any) -> list[int | str]:
    """Return the parts of a location that are in the body: a union's branch names are not."""
    path: list[int | str] = []
    loc = problem["loc"]
    for position, part in enumerate(loc):
        inside = isinstance(part, int) if isinstance(value, list) else part in _keys(value)
        absent = problem["type"] == "missing" and position == len(loc) - 1
        if inside:
            value = value[part]
        if inside or absent:
            path.append(part)
    if problem["type"] == UNKNOWN_TAG and isinstance(problem["input"], dict):
        path.append(problem["ctx"]["field"])
    return path


def _keys(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _name(path: list[int | str]) -> str:
    """Return `messages[0].content` for ("messages", 0, "content")."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name if len(name) <= _MAX_PARAM else name[: _MAX_PARAM - 3] + "..."


def _describe(
    problem: ErrorDetails, param: str, same_place: list[ErrorDetails]
) -> tuple[str, str | None]:
    kind = problem["type"]
    if kind in _EXPECTED:
        kinds = [_EXPECTED[p["type"]] for p in same_place if p["type"] in _EXPECTED]
        wanted = " or ".join(dict.fromkeys(kinds))
        got = _kind(problem["input"])
        message = f"Invalid type for '{param}': expected {wanted}, but got {got} instead."
        return message, "invalid_type"
    if kind in _WORDINGS:
        return _WORDINGS[kind](problem, param)
    text = problem["msg"].removeprefix("Value error, ")
    return f"Invalid '{param}': {text}." if param else f"{text}.", "invalid_value"


def _missing(problem: ErrorDetails, param: str) -> tuple[str, str]:
    return f"Missing required parameter: '{param}'.", "missing_required_parameter"


def _unknown(problem: ErrorDetails, param: str) -> tuple[str, str]:
    return f"Unknown parameter: '{param}'.", "unknown_parameter"


def _unsupported(problem: ErrorDetails, param: str) -> tuple[str, str]:
    return f"Unsupported parameter: '{param}' is not supported here.", "unsupported_parameter"


def _bound(limit: str, sign: str, side: str) -> Callable[[ErrorDetails, str], tuple[str, str]]:
    def wording(problem: ErrorDetails, param: str) -> tuple[str, str]:
        number = "integer" if isinstance(problem["input"], int) else "decimal"
        if isinstance(problem["ctx"][limit], float):
            number = "decimal"
        message = (
            f"Invalid '{param}': {number} {side} value. Expected a value {sign} "
            f"{_shown(problem['ctx'][limit])}, but got {_shown(problem['input'])} instead."
        )
        return message, f"{number}_{side.replace('imum', '').replace(' ', '_')}_value"

    return wording


def _length(thing: str, limit: str, side: str) -> Callable[[ErrorDetails, str], tuple[str, str]]:
    def wording(problem: ErrorDetails, param: str) -> tuple[str, str]:
        size = len(problem["input"])
        word, bound = ("long", "maximum") if side == "above_max" else ("short", "minimum")
        article = "an" if thing == "array" else "a"
        message = (
            f"Invalid '{param}': {thing} too {word}. Expected {article} {thing} with {bound} "
            f"length {problem['ctx'][limit]}, but got {article} {thing} with length {size} instead."
        )
        return message, f"{thing}_{side}_length"

    return wording


def _choice(problem: ErrorDetails, param: str) -> tuple[str, str]:
    given = problem["input"]
    if problem["type"] == UNKNOWN_TAG:
        if not isinstance(given, dict):
            message = (
                f"Invalid type for '{param}': expected an object, but got {_kind(given)} instead."
            )
            return message, "invalid_type"
        field = problem["ctx"]["field"]
        if field not in given:
            return _missing(problem, param)
        given = given[field]
    allowed = problem["ctx"]["expected"]
    message = f"Invalid value for '{param}': {_shown(given)}. Supported values are: {allowed}."
    return message, "invalid_value"


def _pattern(problem: ErrorDetails, param: str) -> tuple[str, str]:
    expected = f"Expected a string of the pattern {problem['ctx']['pattern']}"
    message = f"Invalid '{param}': {expected}, but got {_shown(problem['input'])} instead."
    return message, "invalid_value"


_WORDINGS: dict[str, Callable[[ErrorDetails, str], tuple[str, str]]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "none_required": _unsupported,
    "literal_error": _choice,
    UNKNOWN_TAG: _choice,
    "greater_than_equal": _bound("ge", ">=", "below minimum"),
    "less_than_equal": _bound("le", "<=", "above maximum"),
    "too_long": _length("array", "max_length", "above_max"),
    "too_short": _length("array", "min_length", "below_min"),
    "string_too_long": _length("string", "max_length", "above_max"),
    "string_pattern_mismatch": _pattern,
    "string_too_short": _length("string", "min_length", "below_min"),
}


def _kind(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "something else")


def _shown(value: Any) -> str:
    """Return a value short enough for a message."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
