"""The JavaScript SDK against the real server: in Node, and in a browser."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.clients.conftest import Live
from tests.programs import lacking, require_program

SDK = Path(__file__).parents[2] / "clients" / "javascript"
MODULES = SDK / "node_modules"
CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_TIMEOUT_S = 170
_COOKIE = "omai_session=0123456789"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Compile the SDK."""
    require_program("node", package="nodejs")
    require_program("npm", package="npm")
    if not MODULES.is_dir():
        lacking("The JavaScript SDK's modules are not installed: make clients-setup")
    _output(["npm", "run", "build", "--silent"])


def test_the_package_passes_its_own_tests() -> None:
    """As it would be published, with the oldest and the newest openai that it supports."""
    _output(["npm", "test"])


def _output(command: list[str], **environment: str) -> str:
    """Run a command of the SDK's, and return what it prints."""
    ours = ("OMAI_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        command, env=kept | environment, cwd=SDK, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scenario(name: str, live: Live, key: str | None = None) -> Any:
    """Return what a scenario of `clients/javascript/test/live/scenarios.mjs` comes to."""
    output = _output(
        ["node", "test/live/scenarios.mjs", name],
        OMAI_BASE_URL=live.base_url,
        OMAI_API_KEY=key or live.key,
        USERNAME=live.username,
        PASSWORD=live.password,
    )
    return json.loads(output)


def test_a_chat_completion_has_text_usage_and_the_request_id(live: Live) -> None:
    """So does withResponse() say."""
    result = scenario("chat", live)
    assert result["content"]
    assert result["request_id"]
    assert 0 < result["usage"]["completion_tokens"] <= 12


def test_a_stream_adds_up_to_the_whole_answer(live: Live) -> None:
    """Its last chunk has the usage."""
    result = scenario("stream", live)
    assert result["same"]
    assert result["usage"]["total_tokens"] > 0


def test_an_aborted_stream_ends_and_so_does_a_call_with_its_signal(live: Live) -> None:
    """The stream's iteration ends quietly; the call is refused as aborted."""
    assert scenario("abort", live) == {"finished": False, "late": True}


def test_embeddings_are_the_same_in_base64_and_in_floats(live: Live) -> None:
    """Base64 is what the client asks for unless told otherwise."""
    result = scenario("embeddings", live)
    assert result["dimensions"] == live.api.embedder.dimension
    assert result["difference"] < 1e-6
    assert result["usage"]["prompt_tokens"] > 0


def test_models_are_listed(live: Live) -> None:
    """All that the key may use."""
    assert {"omai-gpt-4", "text-embedding-ada-002"} <= set(scenario("models", live))


def test_a_session_is_opened_once_renewed_when_it_ended_and_closed(live: Live) -> None:
    """Two first calls share a login; an ended session costs one 401 that nobody sees."""
    assert scenario("session", live) == [
        "/v1/auth/login 200",
        "/v1/models 200",
        "/v1/models 200",
        "/v1/chat/completions 401",
        "/v1/auth/login 200",
        "/v1/chat/completions 200",
        "/v1/auth/logout 200",
        "/v1/auth/logout 401",
    ]


def test_a_wrong_password_is_an_authentication_error(live: Live) -> None:
    """It is raised by the call that had to log in."""
    assert scenario("wrong_password", live)["raised"] is True


def test_the_basic_tiers_61st_request_is_a_rate_limit_error(live: Live) -> None:
    """It says when to come back."""
    result = scenario("rate_limit", live, live.new_key("basic"))
    assert result["answered"] == 60
    assert (result["code"], result["type"]) == ("rate_limit_exceeded", "requests")
    assert int(result["retryAfter"]) >= 1
    assert result["requestID"]


def test_a_request_too_large_for_the_tier_is_not_retried(live: Live) -> None:
    """Waiting cannot help it, and the server says so."""
    assert scenario("too_large", live, live.new_key("basic")) == {"raised": True, "requests": 1}


def test_rerank_and_score_agree(live: Live) -> None:
    """A document that is the query itself comes first."""
    result = scenario("relevance", live)
    assert (result["results"], result["best"]) == (2, "The quick brown fox")
    assert result["difference"] < 1e-6


def test_tokens_are_those_that_are_counted_and_make_the_text(live: Live) -> None:
    """Messages count as a completion's prompt does."""
    result = scenario("tokens", live)
    assert len(set(result["counts"])) == 1
    assert result["same"]
    assert result["chat"][0] == result["chat"][1]


def test_usage_lists_what_was_just_used(live: Live) -> None:
    """By day, model and key, as soon as the answer is there."""
    result = scenario("usage", live, live.new_key("pro"))
    (row,) = result["rows"]
    assert (row["model"], row["requests"]) == ("omai-gpt-4", 1)
    assert row["total_tokens"] == result["answered"]["total_tokens"]
    assert row["key_id"]
    assert row["start_time"] % 86_400 == 0


class Page(SimpleHTTPRequestHandler):
    """Serves one page, its script and its settings, and takes its result."""

    server: PageServer

    def do_GET(self) -> None:
        body = self.server.files.get(self.path.removeprefix("/"))
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", self.guess_type(self.path))
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.results.put(json.loads(body))

    def log_message(self, *args: object) -> None:
        pass


class PageServer(ThreadingHTTPServer):
    """Where the browser finds the page."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.files = files
        self.results: Queue[Any] = Queue()


class SessionsOfOtherOrigins(BaseHTTPRequestHandler):
    """An API that lets the pages of one other origin use its cookie."""

    server: SessionServer

    def do_OPTIONS(self) -> None:
        self._answer(204, {"Access-Control-Allow-Methods": "GET, POST"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/v1/auth/login":
            self._answer(200, {"Set-Cookie": f"{_COOKIE}; Path=/; HttpOnly; SameSite=Lax"})
        else:
            self._answer(200 if self._is_known() else 401)

    def do_GET(self) -> None:
        self._answer(200 if self._is_known() else 401)

    def _is_known(self) -> bool:
        return self.headers.get("Cookie") == _COOKIE

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.server.answered.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        self.send_header("Access-Control-Allow-Origin", self.headers["Origin"])
        self.send_header("Access-Control-Allow-Credentials", "true")
        asked = self.headers.get("Access-Control-Request-Headers", "")
        self.send_header("Access-Control-Allow-Headers", asked)
        self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if status != 204:
            self.wfile.write(b'{"object": "list", "data": []}')

    def log_message(self, *args: object) -> None:
        pass


class SessionServer(ThreadingHTTPServer):
    """The API with sessions; what it answered."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SessionsOfOtherOrigins)
        self.answered: list[str] = []


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Serve in a thread; give the address."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def browse(tmp_path: Path, upstream: str, settings: dict[str, str]) -> Any:
    """Open `clients/javascript/test/live/page.mjs` in a browser, and return its result."""
    require_program("chromium", package="chromium")
    _output(
        [
            str(MODULES / ".bin" / "esbuild"),
            "test/live/page.mjs",
            "--bundle",
            "--format=esm",
            f"--alias:openai={upstream}",
            f"--outfile={tmp_path / 'page.js'}",
            "--log-level=warning",
        ]
    )
    page = PageServer(
        {
            "page.html": b'<!doctype html><script type="module" src="page.js"></script>',
            "page.js": (tmp_path / "page.js").read_bytes(),
            "settings.json": json.dumps(settings).encode(),
        }
    )
    with serving(page) as url, (tmp_path / "chromium.log").open("wb") as log:
        command = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", f"{url}/page.html"]
        browser = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            result = page.results.get(timeout=_TIMEOUT_S)
        finally:
            browser.terminate()
            browser.wait(_TIMEOUT_S)
    assert "failed" not in result, result["failed"]
    return result


@pytest.mark.parametrize("upstream", ["openai-oldest", "openai-newest"])
def test_a_page_of_another_origin_calls_and_streams_with_a_key(
    live: Live, tmp_path: Path, upstream: str
) -> None:
    """It also reads the request's id, what is left of the limits, and what an error says."""
    settings = {"baseURL": live.base_url, "apiKey": live.new_key("basic")}
    result = browse(tmp_path, upstream, settings)
    assert "dangerouslyAllowBrowser" in result["refused"]
    assert result["content"]
    assert result["content"] == result["streamed"]
    assert result["requestID"]
    assert result["limit"] == "60"
    assert 0 < int(result["remaining"]) < 40_000
    error = result["error"]
    assert (error["status"], error["code"]) == (401, "invalid_api_key")
    assert "API key" in error["message"]
    assert error["requestID"]


@pytest.mark.parametrize("upstream", ["openai-oldest", "openai-newest"])
def test_a_page_of_another_origin_keeps_a_session(tmp_path: Path, upstream: str) -> None:
    """The browser keeps the cookie and sends it along; scripts cannot read it."""
    server = SessionServer()
    with serving(server) as url:
        settings = {"baseURL": f"{url}/v1", "username": "ada", "password": "correct horse"}
        assert browse(tmp_path, upstream, settings) == {"cookies": ""}
    assert [entry for entry in server.answered if not entry.startswith("OPTIONS")] == [
        "POST /v1/auth/login 200",
        "GET /v1/models 200",
        "GET /v1/models 200",
        "POST /v1/auth/logout 200",
    ]
