"""What a vector store must do to be fed, where it is, and how one is opened."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import parse_qs, urlsplit

from omai_ray.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["lance", "qdrant", "pgvector"]

FORMS = (
    "lance:///DIRECTORY/TABLE, a directory ending in .lance, qdrant:///DIRECTORY/COLLECTION, "
    "qdrant+http://HOST:PORT/COLLECTION or postgresql://HOST/DATABASE?table=NAME"
)
FINGERPRINT = b"omai.embedding_fingerprint"
_SCHEMES: dict[str, Kind] = {
    "lance": "lance",
    "qdrant": "qdrant",
    "qdrant+http": "qdrant",
    "qdrant+https": "qdrant",
    "postgresql": "pgvector",
    "postgres": "pgvector",
}
_MODULES: dict[Kind, tuple[str, ...]] = {
    "lance": ("lance",),
    "qdrant": ("qdrant_client",),
    "pgvector": ("asyncpg", "pgvector"),
}


@dataclass(frozen=True)
class SinkTarget:
    """Where rows go.

    uri: as it was given, which may hold a password. shown: the same without it.
    name: the collection or table. directory: of a store in files; None for a server.
    """

    kind: Kind
    uri: str = field(repr=False)
    shown: str
    name: str
    directory: Path | None = None


class Sink(Protocol):
    """A table in a vector store. One thread makes all calls; any of them may fail."""

    def exists(self) -> bool:
        """Say whether the table is there."""
        ...

    def prepare(self, schema: pa.Schema) -> None:
        """Create the table, or check that the one there takes such rows.

        schema: as of `row_schema`. Raises ConfigError naming what differs.
        """
        ...

    def put(self, unit: str, version: str, batches: Iterator[pa.RecordBatch]) -> None:
        """Make these the unit's rows: same ids are replaced, rows of other versions deleted."""
        ...

    def remove(self, unit: str) -> None:
        """Delete a unit's rows."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def parse_target(uri: str) -> SinkTarget:
    """Read a sink's URI. Raises ConfigError for one of no known form, or whose extra is missing."""
    target = _parse(uri)
    missing = [name for name in _MODULES[target.kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"sink {target.shown} needs {' and '.join(missing)}, not installed here: "
            f"pip install 'omai-ray[{target.kind}]'"
        )
    return target


def _parse(uri: str) -> SinkTarget:
    if "://" not in uri and uri.rstrip("/").endswith(".lance"):
        path = Path(uri).absolute()
        return SinkTarget("lance", str(path), str(path), path.name, path)
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError:  # which may quote a part of the password
        raise ConfigError(
            "a sink's URI has a host or port that cannot be read (in a password, / is written "
            f"%2F); it is {FORMS}"
        ) from None
    kind = _SCHEMES.get(parts.scheme) if "://" in uri else None
    if kind is None:
        shown = f"{parts.scheme}://…" if parts.scheme else uri.rpartition("@")[2]
        raise ConfigError(f"sink {shown} is of no known kind; it is {FORMS}")
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username else ""
    shown = f"{parts.scheme}://{user}{host}{parts.path}"
    if kind == "pgvector":
        tables = parse_qs(parts.query).get("table", [])
        if len(tables) != 1 or not parts.path.strip("/"):
            raise ConfigError(f"sink {shown} names no database and table; it is {FORMS}")
        return SinkTarget(kind, uri, f"{shown}?table={tables[0]}", tables[0])
    path = Path(parts.path)
    if not path.name or (not host and path.parent == Path("/")):
        raise ConfigError(f"sink {shown} names no table or collection; it is {FORMS}")
    if bool(host) != (parts.scheme not in ("lance", "qdrant")):
        wanted = "no host: a path follows three slashes" if host else "a host"
        raise ConfigError(f"sink {shown} must have {wanted}; it is {FORMS}")
    directory = None if host else path if kind == "lance" else path.parent
    return SinkTarget(kind, uri, shown, path.name, directory)


def connect(target: SinkTarget) -> Sink:
    """Return the sink at a target; its libraries are loaded now."""
    if target.kind == "lance":
        from pipelines.sinks.lance import LanceSink

        return LanceSink(target)
    if target.kind == "qdrant":
        from pipelines.sinks.qdrant import QdrantSink

        return QdrantSink(target)
    from pipelines.sinks.pgvector import PgvectorSink

    return PgvectorSink(target)


def check_model(target: SinkTarget, found: str | None, schema: pa.Schema) -> None:
    """Raise ConfigError where a table says that another model filled it."""
    wanted = schema.metadata[FINGERPRINT].decode()
    if found is not None and found != wanted:
        raise ConfigError(
            f"sink {target.shown} holds vectors of a model with fingerprint {found[:12]}, and this "
            f"run's is {wanted[:12]}: vectors of two models cannot be compared. Name another "
            "table, or delete that one"
        )
