"""The programs of README and docs, page by page as pasted, against a running server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.programs import require_program
from tests.ray.conftest import Served
from tests.snippets import NOT_RUN, PROGRAMS, ROOT, Snippet, snippets

PATIENCE_S = 400.0
ANIMAL = "A quick brown fox"
PASSWORD = "correct horse battery"
PROGRAM_PACKAGES = {"curl": "curl", "node": "nodejs", "sqlite3": "sqlite3"}
REPOSITORY = ("cluster.yaml", "deployments", "examples")
MAKE_ID = "ID=$(omai-ray keys create --tier pro --quiet | cut -c 9-20)"
# What was done before a page begins.
BEFORE = {
    "docs/accounts.md": f"{MAKE_ID}; omai-ray users create admin --tier enterprise --role admin",
    "docs/operations.md": MAKE_ID,
    "docs/security.md": f"{MAKE_ID}; omai-ray users create ada --tier pro",
}
# What is in a page's output, besides a status of 0.
SHOWN = {
    "README.md": [
        '"object":"chat.completion"',
        "32 dimensions\n",
        "['omai-gpt-4', 'text-embedding-ada-002'",  # and those of other tests
    ],
    "docs/accounts.md": ['"value":"omai-sk-', "account.create"],
    "docs/api.md": ['"relevance_score":'],
    "docs/bulk.md": [f"'text': '{ANIMAL}'"],
    "docs/files-and-batches.md": ['"id":"embjob_'],
    "docs/operations.md": ['"check": "database"'],
}
# Words that stand for something of the reader's.
PLACEHOLDERS = (
    (".venv/bin/", ""),
    ("~/.local/state/omai-ray", "$OMAI_STATE_DIR"),
    ("admin:PASSWORD", f"'admin:{PASSWORD}'"),
    (" ID ", ' "$ID" '),
    ("keys revoke ID", 'keys revoke "$ID"'),
)
# Pages whose commands are of the server's accounts.
OF_THE_SERVER = {"README.md", "docs/accounts.md", "docs/quota.md"}
# The command as it is, but with passwords typed, patient with batches, and on the Ray that is there
# once an `embed` has shown that it starts one.
_OMAI_RAY = """
set -euo pipefail
omai-ray() {
  case "$1 ${2:-}" in
    "batch results")
      for _ in $(seq 120); do
        command omai-ray batch status "$3" --json | grep -q '"status": "completed"' && break
        sleep 0.5
      done ;;
    "embed "*)
      [ -z "${STARTED_RAY:-}" ] || set -- "$@" --address "$RAY_ADDRESS"
      STARTED_RAY=1 ;;
  esac
  command omai-ray "$@" <<< "$TEST_PASSWORD"$'\n'"$TEST_PASSWORD"
}
"""


def pages() -> list[str]:
    """Return the pages that have programs to run."""
    return list(dict.fromkeys(s.page for s in snippets(*PROGRAMS) if s.key not in NOT_RUN))


def as_bash(snippet: Snippet, folder: Path, url: str) -> str:
    """Return the lines of bash that run a block in a folder, with the address of this server."""
    text = snippet.text.replace("http://127.0.0.1:8000", url)
    heading = f"echo '== {snippet}' >&2"
    if snippet.language == "bash":
        for word, meaning in PLACEHOLDERS:
            text = text.replace(word, meaning)
        return f"{heading}\n{text}"
    program, suffix = ("node", "mjs") if snippet.language == "javascript" else ("python", "py")
    file = folder / f"line_{snippet.line}.{suffix}"
    file.write_text(text, encoding="utf-8")
    return f"{heading}\n{program} {file.name}"


def furnish(folder: Path, page: str, served: Served) -> None:
    """Put into a folder what the reader has: the repository, a batch, a corpus, settings."""
    for name in REPOSITORY:
        (folder / name).symlink_to(ROOT / name)
    url, body = "/v1/embeddings", {"model": "text-embedding-ada-002", "input": "A fox"}
    if page == "docs/files-and-batches.md":
        message = {"role": "user", "content": "Hello!"}
        url = "/v1/chat/completions"
        body = {"model": "omai-gpt-4", "messages": [message], "max_tokens": 4}  # type: ignore[dict-item]
    request = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    (folder / "input.jsonl").write_text(json.dumps(request), encoding="utf-8")
    pq.write_table(pa.table({"text": ["A fox", "A dog"]}), folder / "docs.parquet")
    (folder / "IN").mkdir()
    rows = {"title": ["Foxes", "Dogs"], "body": [ANIMAL, "A dog"], "year": [2025, 2026]}
    pq.write_table(pa.table({**rows, "text": rows["body"]}), folder / "IN/animals.parquet")
    models = [
        spec.model_dump(include={"name", "task", "source"}) for spec in served.settings.models
    ]
    (folder / "settings.yaml").write_text(json.dumps({"port": 0, "models": models}))


def run(script: str, environment: dict[str, str], folder: Path) -> tuple[int, str, str]:
    """Run a script without a terminal; return its status and what it printed on both streams.

    One that takes too long is ended with all that it started, and its status is a signal's.
    """
    process = subprocess.Popen(
        ["bash", "-c", script], env=environment, cwd=folder, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    watchdog = threading.Timer(PATIENCE_S, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        output, errors = process.communicate()
    finally:
        watchdog.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output, errors


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", pages())
def test_a_page_works_as_pasted(page: str, served: Served, tmp_path: Path) -> None:
    """Its blocks one after the other, in one shell, fail at nothing and show what they say."""
    blocks = [s for s in snippets(*PROGRAMS) if s.page == page and s.key not in NOT_RUN]
    script = "\n".join(as_bash(block, tmp_path, served.url) for block in blocks)
    for program, package in PROGRAM_PACKAGES.items():
        if f"{program} " in script:
            require_program(program, package=package)
    furnish(tmp_path, page, served)
    _, key = served.create_key("pro")
    python = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMAI_STATE_DIR": str(tmp_path / "state"),
        "OMAI_CONFIG": str(tmp_path / "settings.yaml"),
        "OMAI_API_KEY": key,
        "OMAI_BASE_URL": f"{served.url}/v1",
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "TEST_PASSWORD": PASSWORD,
    }
    if page in OF_THE_SERVER:
        environment["OMAI_STATE_DIR"] = str(served.settings.state_dir)
    status, output, errors = run(
        f"{_OMAI_RAY}\n{BEFORE.get(page, '')}\n{script}", environment, tmp_path
    )
    assert status == 0, errors
    assert [text for text in SHOWN.get(page, []) if text not in output] == [], output
    assert "undefined" not in output
