"""A template of a row's text: columns' names in braces, such as `{title}: {body}`."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter

from omai_ray.errors import ConfigError


def parse_template(template: str) -> tuple[tuple[str, str], ...]:
    """Return literal text, and the column whose value follows it, "" at the end for none.

    Raises ConfigError, showing what is wrong, also where there is no column.
    """
    try:
        parts = tuple(_parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}") from None
    if not any(column for _, column in parts):
        raise ConfigError(f"template {template!r} names no column, such as {{title}}")
    return parts


def _parse(template: str) -> Iterator[tuple[str, str]]:
    for literal, name, form, conversion in Formatter().parse(template):
        if name == "":
            raise ValueError("{} has no column's name")
        if conversion or form:
            asked = f"!{conversion}" if conversion else f":{form}"
            raise ValueError(f"{{{name}{asked}}} may be nothing but a column's name")
        yield literal, name or ""
