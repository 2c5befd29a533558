"""A canary in keys and prompts, through every path of a real platform: nothing on disk has it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments.platform import _ray_directory
from omai_ray.identity import keys
from tests.faults.platform import (
    CHAT,
    CHAT_REPLICA,
    EMBEDDING,
    ENDLESS,
    PATIENCE_S,
    Platform,
    eventually,
)
from tests.ray.test_command import told

pytestmark = pytest.mark.timeout(PATIENCE_S)

CANARY = "canaryw0rd"
IN_URL = "urlcan4ry"  # Serve's spans have the URL of a request as it came
PROMPT = [{"role": "user", "content": f"{CANARY} {CANARY}"}]


def written(platform: Platform) -> Iterator[Path]:
    """Yield every file that logs, spans and Ray's own records are in."""
    settings = platform.served.settings
    yield settings.state_dir / "omai.log"
    yield told(settings.state_dir)
    for root in (settings.state_dir / "traces", _ray_directory(settings.state_dir)):
        yield from (path for path in root.rglob("*") if path.is_file())


@pytest.mark.fault(20)
def test_no_log_span_metric_or_file_of_rays_has_a_key_or_a_prompt(platform: Platform) -> None:
    """Answers, refusals, wrong keys and passwords, a batch, and a replica that dies meanwhile."""
    served = platform.served
    _, key = served.create_key("wide")
    _, wrong = keys.generate()
    paths = ("chat/completions", "completions", "responses", "embeddings", "rerank", IN_URL)
    with served.client(key) as client:
        chat = {"model": CHAT, "messages": PROMPT, "max_tokens": 8}
        for body in (chat, chat | {"stream": True}, chat | {"n": 0}, chat | {CANARY: CANARY}):
            client.post("/v1/chat/completions", json=body)
        client.post("/v1/embeddings", json={"model": EMBEDDING, "input": CANARY})
        client.post("/v1/completions", json={"model": CHAT, "prompt": CANARY, "max_tokens": 4})
        client.post("/v1/responses", json={"model": CHAT, "input": CANARY})
        for path in paths:
            client.post(f"/v1/{path}", content=CANARY.encode())
            client.post(f"/v1/{path}?key={IN_URL}", json={"model": CANARY, "input": CANARY})
        line = {"custom_id": CANARY, "method": "POST", "url": "/v1/chat/completions", "body": chat}
        files = {"file": (f"{CANARY}.jsonl", json.dumps(line).encode())}
        made = client.post("/v1/files", data={"purpose": "batch"}, files=files).json()
        window = {"completion_window": "24h", "endpoint": "/v1/chat/completions"}
        batch = client.post("/v1/batches", json={"input_file_id": made["id"], **window}).json()
        eventually(lambda: client.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed")
        client.delete(f"/v1/files/{made['id']}")
        long = chat | {"stream": True, "max_tokens": 1900} | ENDLESS
        with client.stream("POST", "/v1/chat/completions", json=long) as response:
            lines = response.iter_lines()
            next(lines)
            for pid in platform.pids(CHAT_REPLICA):
                os.kill(pid, signal.SIGKILL)
            assert "error" in list(lines)[-2]
    for token in (wrong, CANARY):
        with served.client(token) as client:
            assert client.post("/v1/chat/completions", json=chat).status_code == 401
    with httpx.Client(base_url=served.url, timeout=30) as client:
        assert client.get("/v1/models", auth=(CANARY, CANARY)).status_code == 401
    eventually(lambda: len(platform.pids(CHAT_REPLICA)) == 2)

    secrets = [CANARY] + [parsed.secret for parsed in map(keys.parse, (key, wrong)) if parsed]
    assert 3 == len(secrets)
    cluster = json.loads((served.settings.state_dir / "cluster.json").read_text())
    found = {"metrics": httpx.get(cluster["metrics"], timeout=30).content}
    found |= {str(path): path.read_bytes() for path in written(platform)}
    assert any("traces" in name for name in found)
    assert any("/logs/" in name for name in found)
    assert [] == [name for name, text in found.items() if any(s.encode() in text for s in secrets)]
    told_url = [name for name, text in found.items() if IN_URL.encode() in text]
    assert all(Path(name).parent.name == "traces" for name in told_url)
