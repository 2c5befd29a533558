"""Real vector stores, filled by a job and read back by their own clients."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from tests.databases import Postgres

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

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
            return read_qdrant(client)
        finally:
            client.close()

    def drop(self) -> None:
        """Delete the collection."""
        from qdrant_client import QdrantClient

        client = QdrantClient(path=self._path)
        client.delete_collection("docs")
        client.close()


class QdrantServerStore(Store):
    """A collection of a stand-in for Qdrant's server: its REST API over a collection in memory."""

    wide = "vectors of 4 dimensions, cosine distance"

    def __init__(self, server: QdrantStandIn) -> None:
        self._server = server
        self.uri = f"qdrant+http://127.0.0.1:{server.server_address[1]}/docs"
        self.unreachable = "qdrant+http://127.0.0.1:1/docs"

    def read(self) -> list[dict[str, Any]]:
        """Scroll through the collection behind it."""
        return read_qdrant(self._server.client)

    def drop(self) -> None:
        """Delete the collection."""
        self._server.client.delete_collection("docs")


class QdrantStandIn(ThreadingHTTPServer):
    """Answers what a sink asks of a server. indexed: names of payload indexes that were made."""

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        super().__init__(("127.0.0.1", 0), QdrantHandler)
        self.client = QdrantClient(":memory:")
        self.lock = threading.Lock()
        self.indexed: list[str] = []

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        """Return a call's result; KeyError for one that is not known."""
        from qdrant_client import models

        name, client = path[1], self.client
        match method, path[2:]:
            case "GET", ["exists"]:
                return {"exists": client.collection_exists(name)}
            case "GET", []:
                return client.get_collection(name).model_dump(mode="json")
            case "PUT", []:
                vectors = models.VectorParams(**body["vectors"])
                return client.create_collection(name, vectors, metadata=body["metadata"])
            case "PUT", ["index"]:
                assert body["field_schema"] == "keyword"
                self.indexed.append(body["field_name"])
            case "PUT", ["points"]:
                client.upsert(name, models.Batch(**body["batch"]))
            case "POST", ["points", "delete"]:
                client.delete(name, models.FilterSelector(**body))
            case _:
                raise KeyError(path)
        return {"operation_id": 0, "status": "completed"}


class QdrantHandler(BaseHTTPRequestHandler):
    server: QdrantStandIn

    def _answer(self) -> None:
        path = urlsplit(self.path).path.strip("/").split("/")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        with self.server.lock:
            result = self.server.answer(self.command, path, body)
        content = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = _answer  # noqa: N815 - the library's names

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def run_qdrant() -> Iterator[QdrantStandIn]:
    """Run a stand-in while the context lasts."""
    with QdrantStandIn() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.client.close()


def read_qdrant(client: QdrantClient) -> list[dict[str, Any]]:
    """Return a collection's points."""
    points, _ = client.scroll("docs", limit=1000, with_vectors=True)
    rows = []
    for point in points:
        payload = point.payload or {}
        identity = {name: value for name, value in payload.items() if name.startswith("omai_")}
        rest = {name: value for name, value in payload.items() if name not in identity}
        rows.append({**identity, "omai_id": point.id, "vector": point.vector, "columns": rest})
    return rows


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
