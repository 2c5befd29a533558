"""Vectors by the ids that they were made of, kept on a node's disk from run to run."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.errors import RunFailed

BUSY_TIMEOUT_S = 60.0
PAGE_BYTES = 16 << 10
MOST_PER_QUERY = 500
_PREPARE = (
    f"PRAGMA page_size = {PAGE_BYTES}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "CREATE TABLE IF NOT EXISTS vectors (key BLOB NOT NULL, vector BLOB NOT NULL)",
    "CREATE UNIQUE INDEX IF NOT EXISTS vectors_by_key ON vectors (key)",
)

Vectors = npt.NDArray[np.float32]


class VectorCache:
    """One directory for each model's fingerprint; actors of one node may use it at once.

    A context manager, used by one thread. It must be on a disk of the node: SQLite's log, which
    lets readers go on beside a writer, works on no network filesystem.
    Raises RunFailed, naming the file, where it cannot be read or written.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "vectors.sqlite"
        with self._explained():
            directory.mkdir(parents=True, exist_ok=True)
            with (directory / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # two may not go over to the log at once
                self._db = _connect(self._path)

    def __enter__(self) -> VectorCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Return the vectors that there are."""
        found: dict[bytes, bytes] = {}
        with self._explained():
            for start in range(0, len(keys), MOST_PER_QUERY):
                part = keys[start : start + MOST_PER_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, vector FROM vectors WHERE key IN ({marks})"  # noqa: S608
                found |= self._db.execute(query, part)
        return {key: np.frombuffer(vector, dtype="<f4") for key, vector in found.items()}

    def put(self, vectors: Mapping[bytes, Vectors]) -> None:
        """Add vectors, all or none; what is there already stays."""
        if not vectors:
            return
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RunFailed(f"cache {self._path}: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        for statement in _PREPARE:
            db.execute(statement)
    except BaseException:
        db.close()
        raise
    return db
