"""curl and requests, as the API reference shows them, against a running server."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import requests

from tests.api.conftest import CHAT, EMBEDDING
from tests.api.shapes import check, check_error
from tests.clients.conftest import Live
from tests.programs import require_program

FOX = "The quick brown fox jumps over the lazy dog"
GREEDY: dict[str, Any] = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Hello, how are you?"}],
    "temperature": 0,
    "max_tokens": 12,
}


def curl(live: Live, *arguments: str) -> str:
    """Return what curl prints; the arguments are the reference's but for host and key."""
    require_program("curl", package="curl")
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_with_the_references_bearer_header(live: Live) -> None:
    """The command of the reference's first example, on an endpoint that there is and one not."""
    header = f"Authorization: Bearer {live.key}"
    check(json.loads(curl(live, "-H", header, f"{live.base_url}/models")), "ListModelsResponse")
    missing = json.loads(curl(live, "-H", header, f"{live.base_url}/endpoint"))
    check_error(missing, type="invalid_request_error", code="unknown_url", param=None)


@pytest.mark.parametrize("options", [(), ("--compressed",), ("--http1.0",), ("--http2",)])
def test_curl_posts_the_references_bodies(live: Live, options: tuple[str, ...]) -> None:
    """Whatever it says that it could read."""
    header = f"Authorization: Bearer {live.key}"
    kind = "Content-Type: application/json"
    for path, schema, body in (
        (
            "chat/completions",
            "CreateChatCompletionResponse",
            '{"model": "omai-gpt-4", "messages": [{"role": "user", "content": "Hello, how are '
            'you?"}], "temperature": 0.7, "max_tokens": 1000}',
        ),
        (
            "embeddings",
            "CreateEmbeddingResponse",
            '{"model": "text-embedding-ada-002", "input": "The quick brown fox jumps over the '
            'lazy dog"}',
        ),
    ):
        url = f"{live.base_url}/{path}"
        answer = curl(live, *options, "-H", header, "-H", kind, url, "-d", body)
        check(json.loads(answer), schema)


@pytest.mark.parametrize("options", [(), ("--compressed",)])
def test_curl_streams(live: Live, options: tuple[str, ...]) -> None:
    """Events end with [DONE], and what it prints is nothing else."""
    body = json.dumps({**GREEDY, "stream": True})
    printed = curl(
        live,
        *options,
        "-N",
        "-H",
        f"Authorization: Bearer {live.key}",
        "--json",
        body,
        f"{live.base_url}/chat/completions",
    )
    *chunks, done, end = printed.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    for chunk in chunks:
        check(json.loads(chunk.removeprefix("data: ")), "CreateChatCompletionStreamResponse")


def test_curl_without_a_content_type_of_json_is_told_so(live: Live) -> None:
    """`-d` alone declares a form."""
    header = f"Authorization: Bearer {live.key}"
    answer = json.loads(curl(live, "-H", header, f"{live.base_url}/embeddings", "-d", "{}"))
    check_error(answer, type="invalid_request_error", code="unsupported_media_type", param=None)
    assert "Content-Type: application/json" in answer["error"]["message"]


def test_requests_logs_in_as_the_reference_shows(live: Live) -> None:
    """`session.auth`, a login without a body, then calls; then the cookie alone, until logout."""
    with requests.Session() as session:
        session.auth = (live.username, live.password)
        response = session.post(f"{live.base_url}/auth/login")
        assert response.status_code == 200
        assert "omai_session" in session.cookies
        listed = session.get(f"{live.base_url}/models")
        check(listed.json(), "ListModelsResponse")
        answer = session.post(f"{live.base_url}/chat/completions", json=GREEDY)
        check(answer.json(), "CreateChatCompletionResponse")
        with session.post(
            f"{live.base_url}/chat/completions", json={**GREEDY, "stream": True}, stream=True
        ) as streamed:
            lines = [line for line in streamed.iter_lines() if line]
        assert lines[-1] == b"data: [DONE]"
        session.auth = None
        vectors = session.post(
            f"{live.base_url}/embeddings", json={"model": EMBEDDING, "input": FOX}
        )
        check(vectors.json(), "CreateEmbeddingResponse")
        assert session.post(f"{live.base_url}/auth/logout").status_code == 200
        assert session.get(f"{live.base_url}/models").status_code == 401
