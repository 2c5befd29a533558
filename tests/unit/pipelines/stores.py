"""Real vector stores, filled by a job and read back by their own clients."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.databases import Postgres

Key = tuple[str, int, int]


@dataclass
class Stored:
    """A row as a store has it; its columns without the identity."""

    id: str
    unit: str
    columns: dict[str, Any]
    vector: list[float]


class Store(ABC):
    """A place for one table. uri: its sink. unreachable: one of the kind where nothing listens."""

    uri: str
    unreachable: str
    wide: str  # how a refusal names a table with vectors of other dimensions

    @abstractmethod
    def read(self) -> list[dict[str, Any]]:
        """Return every row: the identity's columns, `columns` and `vector`."""

    @abstractmethod
    def drop(self) -> None:
        """Delete the table."""

    def rows(self) -> dict[Key, Stored]:
        """Return the rows by identity, no two alike."""
        found = self.read()
        rows = {
            (row["omai_file"], row["omai_row"], row["omai_chunk"]): Stored(
                str(row["omai_id"]), row["omai_unit"], row["columns"], list(row["vector"])
            )
            for row in found
        }
        assert len(rows) == len(found)
        return rows


class LanceStore(Store):
    """A directory."""

    wide = r"fixed_size_list<(item|element): float>\[4\]"

    def __init__(self, directory: Path) -> None:
        self._path = directory / "docs.lance"
        self.uri = f"lance://{self._path}"
        self.unreachable = "lance:///proc/nowhere/docs.lance"

    def read(self) -> list[dict[str, Any]]:
        """Scan it."""
        import lance

        rows = []
        for row in lance.dataset(str(self._path)).to_table().to_pylist():
            identity = {name: value for name, value in row.items() if name.startswith("omai_")}
            rest = {name: value for name, value in row.items() if name not in identity}
            rows.append({**identity, "vector": rest.pop("embedding"), "columns": rest})
        return rows

    def drop(self) -> None:
        """Delete the directory."""
        import shutil

        shutil.rmtree(self._path)


class QdrantStore(Store):
    """A directory with a collection."""

    wide = "vectors of 4 dimensions, cosine distance"

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "qdrant")
        self.uri = f"qdrant://{self._path}/docs"
        self.unreachable = "qdrant+http://127.0.0.1:1/docs"

    def read(self) -> list[dict[str, Any]]:
        """Scroll through it."""
        from qdrant_client import QdrantClient

        client = QdrantClient(path=self._path)
        try:
            points, _ = client.scroll("docs", limit=1000, with_vectors=True)
        finally:
            client.close()
        rows = []
        for point in points:
            payload = point.payload or {}
            identity = {name: value for name, value in payload.items() if name.startswith("omai_")}
            rest = {name: value for name, value in payload.items() if name not in identity}
            identity["omai_id"] = point.id
            rows.append({**identity, "vector": point.vector, "columns": rest})
        return rows

    def drop(self) -> None:
        """Delete the collection."""
        from qdrant_client import QdrantClient

        client = QdrantClient(path=self._path)
        client.delete_collection("docs")
        client.close()


class PgvectorStore(Store):
    """A table of a server's database."""

    wide = r"embedding vector\(4\)"

    def __init__(self, server: Postgres, table: str) -> None:
        self._server, self._table = server, table
        self.uri = f"{server.url('postgres')}?table={table}"
        self.unreachable = "postgresql://omai:hidden@127.0.0.1:1/postgres?table=docs"

    def read(self) -> list[dict[str, Any]]:
        """Select it."""
        statement = f"SELECT *, embedding::text AS vector FROM {self._table}"
        rows = [dict(row) for row in asyncio.run(self._server.execute(statement))]
        for row in rows:
            row |= {"columns": json.loads(row["payload"]), "vector": json.loads(row["vector"])}
        return rows

    def drop(self) -> None:
        """Drop the table."""
        asyncio.run(self._server.execute(f"DROP TABLE {self._table}"))


def direction(vector: Any) -> Any:
    """Return a vector of length one: Qdrant keeps no more for the cosine distance."""
    array = np.asarray(vector, dtype=np.float64)
    return array / np.linalg.norm(array)
