"""OpenAI's own schemas of what this API answers, to hold every answer against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

_DOCUMENT = json.loads((Path(__file__).parent / "openai_schemas.json").read_text(encoding="utf-8"))


def check(value: Any, schema: str) -> None:
    """Fail where a value does not keep the schema of that name."""
    jsonschema.validate(value, {**_DOCUMENT, "$ref": f"#/components/schemas/{schema}"})


def check_error(value: Any, *, type: str, code: str | None, param: str | None) -> None:  # noqa: A002
    """Fail where a body is not exactly the error envelope, with these values."""
    check(value, "ErrorResponse")
    assert value.keys() == {"error"}
    assert value["error"].keys() == {"message", "type", "param", "code"}
    expected = {"type": type, "code": code, "param": param}
    assert expected == {key: value["error"][key] for key in expected}
