"""Unknown keys, by the fields of pydantic models."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def unknown_keys(value: Any, annotation: Any, key: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each key of a value that its model lacks, with the keys that the model has."""
    if isinstance(value, dict):
        model = next(
            (m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)),
            None,
        )
        if model is None:
            for inner in _inner(annotation, dict):
                for name, held in value.items():
                    yield from unknown_keys(held, inner, f"{key}.{name}" if key else str(name))
            return
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        for name, inner in value.items():
            path = f"{key}.{name}" if key else str(name)
            if name not in fields:
                yield path, sorted(fields)
            else:
                yield from unknown_keys(inner, fields[name].annotation, path)
    elif isinstance(value, list | tuple):
        for inner in _inner(annotation, list, tuple):
            for place, held in enumerate(value):
                yield from unknown_keys(held, inner, f"{key}.{place}")


def _inner(annotation: Any, *kinds: type) -> Iterator[Any]:
    """Yield the types of what the containers of these kinds hold, of a dict its values."""
    for member in _members(annotation):
        if get_origin(member) in kinds and get_args(member):
            yield get_args(member)[1 if get_origin(member) is dict else 0]


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation
