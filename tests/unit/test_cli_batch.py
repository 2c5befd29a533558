from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from omai_ray.cli import main
from tests.peers import OK, peer

BATCH: dict[str, Any] = {
    "id": "batch_1",
    "status": "completed",
    "endpoint": "/v1/embeddings",
    "model": "emb",
    "errors": None,
    "output_file_id": "file-out",
    "error_file_id": "file-err",
    "created_at": 0,
    "expires_at": 86_400,
    "request_counts": {"total": 3, "completed": 2, "failed": 1},
}


class Stub(HTTPServer):
    """Answers by `answers`, and keeps what was asked. withheld: bytes that it does not send."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.withheld = 0
        self.asked: list[tuple[str, str, bytes, str | None]] = []
        self.answers: dict[str, tuple[int, bytes]] = {
            "POST /v1/files": (200, b'{"id": "file-in"}'),
            "POST /v1/batches": (200, json.dumps(BATCH).encode()),
            "GET /v1/batches/batch_1": (200, json.dumps(BATCH).encode()),
            "POST /v1/batches/batch_1/cancel": (200, b'{"status": "cancelling"}'),
            "GET /v1/files/file-out/content": (200, b'{"a": 1}\n'),
            "GET /v1/files/file-err/content": (200, b'{"b": 2}\n'),
        }


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path
        self.server.asked.append((self.command, path, body, self.headers["Authorization"]))
        missing = (404, b'{"error": {"message": "No batch found."}}')
        status, answer = self.server.answers.get(f"{self.command} {path}", missing)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer) + self.server.withheld))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _answer  # noqa: N815 - the names that it looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Run a server that the commands ask."""
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OMAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OMAI_API_KEY", "omai-sk-test")
        yield server
        server.shutdown()
        thread.join()


def test_submit_uploads_the_file_and_prints_the_batchs_id(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the key, the endpoint and what else is said of it."""
    path = tmp_path / 'in"put.jsonl'
    path.write_bytes(b'{"custom_id": "a"}\n')
    options = ["--endpoint", "/v1/embeddings", "--metadata", "a=b=c", "--keep-results", "3600"]
    assert 0 == main(["batch", "submit", str(path), *options])
    assert "batch_1\n" == capsys.readouterr().out
    (_, _, form, key), (_, _, body, _) = stub.asked
    assert "Bearer omai-sk-test" == key
    assert b'filename="in_put.jsonl"\r\n\r\n{"custom_id": "a"}\n\r\n--' in form
    assert {
        "input_file_id": "file-in",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "metadata": {"a": "b=c"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    } == json.loads(body)


def test_results_are_written_and_the_errors_after_them(
    stub: Stub, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """To a file or the standard output; the errors alone where they are asked for."""
    output = tmp_path / "results.jsonl"
    assert 0 == main(["batch", "results", "batch_1", "-o", str(output)])
    assert b'{"a": 1}\n{"b": 2}\n' == output.read_bytes()
    assert 0 == main(["batch", "results", "batch_1", "--errors"])
    assert b'{"b": 2}\n' == capsysbinary.readouterr().out


def test_results_that_break_off_are_no_results(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command fails, and the file of that name stays as it was."""
    output = tmp_path / "results.jsonl"
    output.write_bytes(b"before")
    monkeypatch.setattr("omai_ray.cli.server.Server._object", lambda *_: BATCH)
    stub.withheld = 3
    assert 1 == main(["batch", "results", "batch_1", "-o", str(output)])
    assert "after 9 of 12 bytes" in capsys.readouterr().err
    assert [output] == list(tmp_path.iterdir())
    assert b"before" == output.read_bytes()


def test_results_of_a_batch_that_runs_are_not_there(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the command says so."""
    running = json.dumps({**BATCH, "status": "in_progress"}).encode()
    stub.answers["GET /v1/batches/batch_1"] = (200, running)
    assert 1 == main(["batch", "results", "batch_1"])
    assert "batch_1 is in_progress" in capsys.readouterr().err


def test_a_batch_that_failed_has_no_results(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, where to look, and no empty file; of errors there may be none."""
    failed = BATCH | {"status": "failed", "output_file_id": None, "error_file_id": None}
    stub.answers["GET /v1/batches/batch_1"] = (200, json.dumps(failed).encode())
    output = tmp_path / "results.jsonl"
    assert 1 == main(["batch", "results", "batch_1", "-o", str(output)])
    assert "batch_1 is failed and has no results: `omai-ray batch status" in capsys.readouterr().err
    assert not output.exists()
    assert 0 == main(["batch", "results", "batch_1", "--errors"])


def test_a_life_of_results_that_cannot_be_is_refused_before_the_upload(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file would stay behind."""
    file = tmp_path / "input.jsonl"
    file.write_text("{}\n", encoding="utf-8")
    options = ["--endpoint", "/v1/embeddings", "--keep-results", "5"]
    assert 1 == main(["batch", "submit", str(file), *options])
    assert "--keep-results: expected 3600 to 2592000 seconds, got 5" in capsys.readouterr().err
    assert [] == stub.asked


def test_status_shows_what_is_wrong_with_the_input(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line each; --json gives all."""
    error = {"line": 2, "message": "Not JSON.", "code": "invalid_json_line", "param": None}
    failed = {**BATCH, "status": "failed", "errors": {"object": "list", "data": [error]}}
    stub.answers["GET /v1/batches/batch_1"] = (200, json.dumps(failed).encode())
    assert 0 == main(["batch", "status", "batch_1"])
    assert "line 2: Not JSON. (invalid_json_line)" in capsys.readouterr().out
    assert 0 == main(["batch", "status", "batch_1", "--json"])
    assert failed == json.loads(capsys.readouterr().out)


def test_cancel_and_list_ask_the_server(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    """A list goes on to the next page until it has as many as wanted."""
    assert 0 == main(["batch", "cancel", "batch_1"])
    assert "cancelling\n" == capsys.readouterr().out
    page = {"data": [BATCH], "has_more": True, "last_id": "batch_1"}
    rest = {"data": [BATCH], "has_more": False, "last_id": "batch_1"}
    stub.answers["GET /v1/batches?limit=3"] = (200, json.dumps(page).encode())
    stub.answers["GET /v1/batches?limit=2&after=batch_1"] = (200, json.dumps(rest).encode())
    assert 0 == main(["batch", "list", "--limit", "3", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [("batch_1", 3, "1970-01-01T00:00:00+00:00")] * 2 == [
        (row["id"], row["requests"], row["created"]) for row in rows
    ]


def test_what_the_server_refuses_is_said_in_its_words(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As are a missing file, a missing key and a server that is not there."""
    assert 1 == main(["batch", "status", "batch_2"])
    assert "omai-ray: No batch found.\n" == capsys.readouterr().err
    assert 1 == main(["batch", "status", "../files"])
    assert "'../files' is no batch's id" in capsys.readouterr().err
    missing = str(tmp_path / "none.jsonl")
    assert 1 == main(["batch", "submit", missing, "--endpoint", "/v1/embeddings"])
    assert "no such file" in capsys.readouterr().err
    monkeypatch.setenv("OMAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert 1 == main(["batch", "list"])
    assert "cannot be reached" in capsys.readouterr().err
    monkeypatch.delenv("OMAI_API_KEY")
    assert 1 == main(["batch", "list"])
    assert "OMAI_API_KEY" in capsys.readouterr().err


NOT_OURS = [
    (OK + b"Content-Type: text/html\r\n\r\n<html>\n</html>", False, "no object of JSON"),
    (OK + b"\r\n[]", False, "no object of JSON"),
    (OK + b"\r\n\xff\xfe", False, "no object of JSON"),
    (OK + b'\r\n{"up": true}', False, "the server answers without '"),
    (OK + b'Content-Length: 99\r\n\r\n{"id":', False, "the connection broke off: IncompleteRead"),
    (OK + b"Transfer-Encoding: chunked\r\n\r\nx", False, "the connection broke off: "),
    # Whether the reset overtakes the head of the answer is chance, and so which line it is.
    (OK + b'Content-Length: 99\r\n\r\n{"id":', True, "omai-ray: "),
    (b"HTTP/1.1 502 X\r\nContent-Length: 9\r\n\r\n<", False, ": HTTP 502"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", False, "cannot be reached: "),
    (b"", False, "cannot be reached: "),
    (b"", True, "cannot be reached: "),
]


@pytest.mark.parametrize(("answer", "resets", "line"), NOT_OURS)
@pytest.mark.parametrize("command", ["list", "status", "cancel", "results", "submit"])
def test_a_server_that_is_not_ours_is_told_in_one_line(
    command: str,
    answer: bytes,
    resets: bool,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A page, no HTTP at all, a connection that breaks off: the status is 1."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"{}\n")
    arguments = {"list": [], "submit": [str(file), "--endpoint", "/v1/embeddings"]}
    monkeypatch.setenv("OMAI_API_KEY", "omai-sk-test")
    with peer(answer, resets=resets) as address:
        monkeypatch.setenv("OMAI_BASE_URL", f"http://{address}/v1")
        assert 1 == main(["batch", command, *arguments.get(command, ["batch_1"])])
    told = capsys.readouterr().err
    assert line in told
    assert 1 == told.count("\n")


@pytest.mark.parametrize("url", ["http://255.255.255.255/v1", "http://a b/v1", "http://[::1/v1"])
def test_an_address_that_cannot_be_is_told_in_one_line(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is one that the system permits nobody to connect to."""
    monkeypatch.setenv("OMAI_API_KEY", "omai-sk-test")
    monkeypatch.setenv("OMAI_BASE_URL", url)
    assert 1 == main(["batch", "list"])
    told = capsys.readouterr().err
    assert f"{url} cannot be reached: " in told
    assert 1 == told.count("\n")
