"""Embedding jobs on the cluster, over HTTP."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.patience import eventually
from tests.ray.conftest import Served
from tests.ray.test_batches import driver_pids

MODEL = "text-embedding-ada-002"
PATIENCE_S = 200.0
ENDED = {"completed", "failed", "cancelled"}
ROWS = 12_000  # so many that a job is under way for seconds after its first units


def parquet(texts: list[str | None]) -> bytes:
    """Return a file of texts and their numbers."""
    sink = io.BytesIO()
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    pq.write_table(table, sink)
    return sink.getvalue()


def submit(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Create a job; return it."""
    answer = client.post("/v1/embedding_jobs", json={"model": MODEL, "column": "text", **fields})
    assert 200 == answer.status_code, answer.text
    found: dict[str, Any] = answer.json()
    return found


def upload(client: httpx.Client, content: bytes) -> str:
    """Upload a file; return its id."""
    answer = client.post(
        "/v1/files", files={"file": ("corpus.parquet", content)}, data={"purpose": "user_data"}
    )
    assert 200 == answer.status_code, answer.text
    return str(answer.json()["id"])


def look(client: httpx.Client, job: str) -> dict[str, Any]:
    """Return a job as it is now."""
    found: dict[str, Any] = client.get(f"/v1/embedding_jobs/{job}").json()
    return found


def download(client: httpx.Client, file: str) -> pa.Table:
    """Return a file's rows."""
    return pq.read_table(io.BytesIO(client.get(f"/v1/files/{file}/content").content))


@pytest.mark.timeout(600)
def test_jobs_embed_uploads_and_locations_and_survive_their_driver(
    served: Served,
) -> None:
    """An upload leaves files, each row once; a location's job that is cancelled what is done."""
    account_id, key = served.create_key("pro")
    texts: list[str | None] = [f"text number {number} " + "more " * 40 for number in range(ROWS)]
    texts[5], texts[7] = None, "a short one"
    with served.client(key) as client:
        job = submit(client, input_file=upload(client, parquet(texts)))["id"]
        eventually(lambda: look(client, job)["row_counts"]["completed"] > 0, PATIENCE_S)
        (pid,) = driver_pids(served.settings)
        assert "in_progress" == look(client, job)["status"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: look(client, job)["status"] in ENDED, PATIENCE_S)
        ended = look(client, job)
        assert ("completed", None) == (ended["status"], ended["error"])
        counts = {"total": ROWS, "completed": ROWS - 1, "failed": 1}
        assert counts == ended["row_counts"]

        rows = download(client, ended["output_file_id"])
        assert [n for n in range(ROWS) if n != 5] == rows["id"].to_pylist()
        online = client.post("/v1/embeddings", json={"model": MODEL, "input": texts[7]}).json()
        vector = rows["embedding"][6].as_py()
        assert vector == pytest.approx(online["data"][0]["embedding"], abs=1e-5)
        dead = download(client, ended["error_file_id"]).to_pylist()
        assert [(5, "null")] == [(row["row"], row["reason"]) for row in dead]
        charged = [r for r in served.records(account_id) if r["batch_id"] == job]
        assert [ended["usage"]["input_tokens"]] == [record["prompt_tokens"] for record in charged]

        corpora = served.settings.state_dir / "corpora" / account_id
        (corpora / "in").mkdir(parents=True)
        (corpora / "in" / "a.parquet").write_bytes(parquet(texts * 2))
        made = submit(client, input=f"{corpora}/in", output=f"{corpora}/out")
        eventually(lambda: look(client, made["id"])["row_counts"]["completed"] > 0, PATIENCE_S)
        assert "in_progress" == look(client, made["id"])["status"]
        client.post(f"/v1/embedding_jobs/{made['id']}/cancel")
        eventually(lambda: look(client, made["id"])["status"] in ENDED, PATIENCE_S)
        ended = look(client, made["id"])
        assert ("cancelled", f"{corpora}/out/{made['id']}") == (ended["status"], ended["output"])
        files = Path(ended["output"]).glob("*.parquet")
        written = sum(pq.read_metadata(file).num_rows for file in files)
        assert ended["row_counts"]["completed"] <= written < 2 * ROWS
