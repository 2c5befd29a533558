"""Which text is embedded of a row: a column's, or several joined by a template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omai_ray.text.template import parse_template

if TYPE_CHECKING:
    import pyarrow as pa

Text = str | ValueError | OverflowError | None
# Text that is not UTF-8, which readers do not check; a date that Python has not.
UNREADABLE = (ValueError, OverflowError)
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@dataclass(frozen=True)
class TextSource:
    """What makes a row's text.

    parts: literal text, and the column whose value follows it, "" at the end for none.
    joined: by a template, where a null is an empty string and any scalar is written as text.
    """

    parts: tuple[tuple[str, str], ...]
    joined: bool

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once."""
        return list(dict.fromkeys(column for _, column in self.parts if column))

    def texts(self, batch: pa.RecordBatch) -> list[Text]:
        """Return each row's text, the error where it cannot be read; None where all is null."""
        if not self.joined:
            return _values(batch.column(self.parts[0][1]))
        values = {name: _values(batch.column(name)) for name in self.columns}
        rows = zip(*values.values(), strict=True)
        return [self._join(dict(zip(values, row, strict=True))) for row in rows]

    def _join(self, row: dict[str, Any]) -> Text:
        for value in row.values():
            if isinstance(value, UNREADABLE):
                return value
        if all(value is None for value in row.values()):
            return None
        filled = {name: "" if value is None else str(value) for name, value in row.items()}
        return "".join(literal + (filled[name] if name else "") for literal, name in self.parts)


def column_source(column: str) -> TextSource:
    """Return the source that is a text column alone."""
    return TextSource((("", column),), joined=False)


def template_source(template: str) -> TextSource:
    r"""Return the source that `{column}`s of a template are filled for; `{{` stands for `{`.

    A column's name is all that braces may hold. Raises ConfigError, showing what is wrong.
    """
    return TextSource(parse_template(template), joined=True)


def read_escapes(argument: str) -> str:
    r"""Return an argument with `\n`, `\t` and `\\` replaced by what they stand for."""
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], argument)


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column's type is text, dictionary-encoded or not."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(t(kind) for t in (types.is_string, types.is_large_string, types.is_string_view))


def is_scalar(kind: pa.DataType) -> bool:
    """Say whether a template can write a column's values: text, numbers, truth values, times."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    numbers = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    moments = (types.is_date, types.is_time, types.is_timestamp)
    return is_text(kind) or any(test(kind) for test in (*numbers, *moments))


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values, the error in place of one that Python cannot have."""
    column = _in_microseconds(column)
    try:
        values: list[Any] = column.to_pylist()
    except UNREADABLE:
        return [_value(value) for value in column]
    return values


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UNREADABLE as error:
        return error


def _in_microseconds(column: pa.Array) -> pa.Array:
    """Return a column of nanoseconds in the smallest unit that Python's datetime has."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    if pa.types.is_time64(column.type) and column.type.unit == "ns":
        return column.cast(pa.time64("us"), safe=False)
    return column
