"""A server on loopback that answers what a test says and remembers what it was sent."""

from __future__ import annotations

import json
import secrets
import threading
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import isawaitable
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

Value = TypeVar("Value")

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "omai-gpt-4",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
HELLO: Any = [{"role": "user", "content": "Hello!"}]


@dataclass
class Answer:
    """What to answer. body: JSON, unless it is bytes."""

    status: int = 200
    body: object = field(default_factory=lambda: COMPLETION)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    """What was sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def refusal(status: int, headers: dict[str, str] | None = None) -> Answer:
    """Return an error in the API's form."""
    error = {"message": f"no: {status}", "type": "some_type", "param": None, "code": "some_code"}
    return Answer(status, {"error": error}, headers or {})


class Stub:
    """Answers from `queue` while there is something in it, else with a completion."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.queue: deque[Answer] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, seen: Seen) -> Answer:
        return self.queue.popleft() if self.queue else Answer()

    def count(self, path: str) -> int:
        return len([seen for seen in self.seen if seen.path == path])


class SessionStub(Stub):
    """Lets in who has logged in as ada, or has a key."""

    password = "correct horse"

    def __init__(self) -> None:
        super().__init__()
        self.live: set[str] = set()
        self.login_answers: deque[Answer] = deque()

    def answer(self, seen: Seen) -> Answer:
        if seen.path == "/v1/auth/login":
            return self.log_in(seen)
        cookie = seen.headers.get("Cookie", "").rpartition("omai_session=")[2]
        if cookie not in self.live and "Authorization" not in seen.headers:
            return refusal(401)
        if seen.path == "/v1/auth/logout":
            self.live.discard(cookie)
            return Answer(body={}, headers={"Set-Cookie": "omai_session=; Path=/; Max-Age=0"})
        return super().answer(seen)

    def log_in(self, seen: Seen) -> Answer:
        if self.login_answers:
            return self.login_answers.popleft()
        if seen.json != {"username": "ada", "password": self.password}:
            return refusal(401)
        value = secrets.token_urlsafe(32)
        self.live.add(value)
        cookie = f"omai_session={value}; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"
        return Answer(body={"object": "session"}, headers={"Set-Cookie": cookie})


class SlowLogin(SessionStub):
    """Answers a login when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def log_in(self, seen: Seen) -> Answer:
        self.asked.set()
        assert self.go.wait(30)
        return super().log_in(seen)


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            url = urlsplit(self.path)
            seen = Seen(self.command, url.path, parse_qs(url.query), self.headers, self._body())
            stub.seen.append(seen)
            answer = stub.answer(seen)
            body = (
                answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            )
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json", **answer.headers}
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_DELETE = handle_one  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    return Handler


async def settle(result: Awaitable[Value] | Value) -> Value:
    """Return what a call of either client comes to."""
    return await result if isawaitable(result) else result
