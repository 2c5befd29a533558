"""The middleware in Serve's proxy, over applications that fail in the proxy's ways."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.edge import AHEAD_BYTES, DROPPED_BYTES, EdgeMiddleware
from omai_ray.api.pacing import PacingMiddleware
from omai_ray.api.request_limits import RequestLimits


async def answer(
    app: ASGIApp,
    *headers: tuple[bytes, bytes],
    bodies: tuple[bytes, ...] = (b"",),
    path: str = "/v1/x",
    behind_haproxy: bool = False,
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of what the edge sends for a request."""
    sent: list[Message] = []
    left = list(bodies)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": list(headers),
        "client": ("10.0.0.1", 1),
    }
    limits = RequestLimits(100, max_upload_bytes=200)
    edge = EdgeMiddleware(app, limits, behind_haproxy=behind_haproxy)
    await edge(scope, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    named = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], named, b"".join(message.get("body", b"") for message in sent)


def code_of(body: bytes) -> str:
    """Return an envelope's code."""
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["code"])


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (404, 404, "unknown_url"),
        (408, 503, "server_is_overloaded"),
        (503, 503, "server_is_overloaded"),
        (500, 500, "internal_error"),
    ],
)
async def test_what_the_proxy_writes_as_text_is_put_into_the_envelope(
    status: int, expected: int, code: str
) -> None:
    """With an id, and when to come back."""
    app = PlainTextResponse("Serve's own words", status_code=status)
    got, headers, body = await answer(app)
    assert (expected, code) == (got, code_of(body))
    assert headers["x-request-id"].startswith("req_")
    assert ("retry-after" in headers) == (expected == 503)
    assert b"own words" not in body


async def test_an_exception_or_silence_of_the_proxys_is_a_500_with_the_id() -> None:
    """Not a line of text by the server below."""

    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("canary-in-exception")

    async def says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
        return None

    for app in (raises, says_nothing):
        status, headers, body = await answer(app)
        assert (500, "internal_error") == (status, code_of(body))
        assert headers["x-request-id"].encode() in body
        assert b"canary" not in body


async def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    """As when an ingress replica dies; a stream that has ended is left as it is."""

    def breaks_off(*, ended: bool) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(
                {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": not ended}
            )
            raise RuntimeError("canary-in-exception")

        return app

    status, _, body = await answer(breaks_off(ended=False))
    first, last, rest = body.split(b"\n\n")
    assert (status, first, rest) == (200, b"data: 1", b"")
    assert code_of(last.removeprefix(b"data: ")) == "internal_error"
    assert b"canary" not in body
    assert (await answer(breaks_off(ended=True)))[2] == b"data: 1\n\n"


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    """Read a request to its end, or until it is broken off."""
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
    await PlainTextResponse("late")(scope, receive, send)


@pytest.mark.parametrize("size", [100, 101, 200, 201])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/", "/v1/embeddings"])
async def test_uploads_alone_may_be_longer(path: str, size: int, declared: bool) -> None:
    """By their own limit, whether they declare their length or not."""
    most = 200 if path == "/v1/files" else 100
    headers = ((b"content-length", b"%d" % size),) if declared else ()
    status, _, body = await answer(reads_all, *headers, bodies=(b"a" * size, b""), path=path)
    assert (status == 200) == (size <= most)
    if size > most:
        assert (413, "payload_too_large") == (status, code_of(body))
        assert f"at most {most} bytes" in body.decode()


@pytest.mark.parametrize("rest", [0, 1])
async def test_an_upload_is_read_no_faster_than_it_is_taken(rest: int) -> None:
    """Though what is between the edge and the application reads all it can get."""
    pieces, piece = 64, b"x" * (AHEAD_BYTES // 16 - rest)
    sent, most_ahead, begin = 0, 0, asyncio.Event()
    queue: asyncio.Queue[Message] = asyncio.Queue()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most_ahead
        read = 0
        await begin.wait()
        more = True
        while more:
            message = await receive()
            read += len(message["body"])
            most_ahead = max(most_ahead, sent - read)
            more = message["more_body"]
        assert read == pieces * len(piece)
        await Response()(scope, receive, send)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def read_ahead() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await queue.put(message)
                if sent == pieces * len(piece):
                    return
                begin.set()

        reading = asyncio.create_task(read_ahead())
        await PacingMiddleware(application)(scope, queue.get, send)
        await reading

    async def receive() -> Message:
        nonlocal sent
        sent += len(piece)
        more = sent < pieces * len(piece)
        return {"type": "http.request", "body": piece, "more_body": more}

    status: list[Message] = []

    async def send(message: Message) -> None:
        status.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "headers": [],
    }
    limits = RequestLimits(100, max_upload_bytes=pieces * len(piece))
    await EdgeMiddleware(serve, limits)(scope, receive, send)
    assert ["http.response.start", "http.response.body"] == [m["type"] for m in status]
    assert 200 == status[0]["status"]
    assert AHEAD_BYTES // 2 < most_ahead <= AHEAD_BYTES + len(piece)


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize(
    ("path", "taken", "status", "code"),
    [
        ("/v1/embeddings", True, 400, "request_timeout"),
        ("/v1/files", True, 400, "request_timeout"),
        ("/v1/files", False, 503, "server_is_overloaded"),
    ],
)
async def test_a_body_that_stands_still_is_answered(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    taken: bool,
    more: bool,
    status: int,
    code: str,
) -> None:
    """Whether its client sends no more, or nobody takes what it sends; one that is whole is not."""
    monkeypatch.setattr("deployments.edge.SILENCE_S", 0.01)
    received: list[Message] = []

    async def reads_ahead(scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(read_all(receive))
        done, _ = await asyncio.wait({reading}, timeout=None if more else 0.05)
        assert bool(done) == more
        reading.cancel()
        await PlainTextResponse("answered")(scope, receive, send)

    async def read_all(receive: Receive) -> None:
        while not received or received[-1]["type"] == "http.request":
            received.append(await receive())

    pieces = [b"x" * (10 if taken else AHEAD_BYTES)]

    async def receive() -> Message:
        if not pieces:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": pieces.pop(), "more_body": more}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    limits = RequestLimits(100, max_upload_bytes=2 * AHEAD_BYTES)
    await EdgeMiddleware(reads_ahead, limits)(scope, receive, send)
    head, body = sent
    if not more:
        assert (200, b"answered") == (head["status"], body["body"])
        return
    assert (status, code) == (head["status"], code_of(body["body"]))
    assert (b"connection", b"close") in head["headers"]
    assert ["http.request", "http.disconnect"] == [message["type"] for message in received]
    count = 10 if taken else AHEAD_BYTES
    assert f"stands still: {count} bytes of its body were read" in caplog.text


async def test_only_the_edge_asks_for_pacing() -> None:
    """A client's header is taken away; without an edge nothing but the answer is sent."""
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await Response()(scope, receive, send)

    await answer(app, (b"X-Omai-Paced", b"1"))
    assert [b"x-request-id"] == seen
    bodies = (b"x" * 2**20, b"x" * 2**20, b"")
    sent: list[Message] = []
    left = list(bodies)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    await PacingMiddleware(reads_all)({"type": "http", "headers": []}, receive, send)
    assert ["http.response.start", "http.response.body"] == [m["type"] for m in sent]


async def test_a_body_that_grows_too_long_is_answered_once() -> None:
    """What the application says afterwards is dropped."""
    status, headers, body = await answer(reads_all, bodies=(b"a" * 60, b"a" * 60, b""))
    assert (413, "payload_too_large") == (status, code_of(body))
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("length", "closes"), [(101, False), (DROPPED_BYTES, False), (DROPPED_BYTES + 1, True)]
)
async def test_only_a_long_rest_of_a_body_is_cut_off(length: int, closes: bool) -> None:
    """What is shorter is read and dropped: a connection that is closed may lose the answer."""
    status, headers, _ = await answer(reads_all, (b"content-length", b"%d" % length))
    assert status == 413
    assert closes == (headers.get("connection") == "close")


async def test_a_length_beside_chunks_is_refused() -> None:
    """What follows could be taken for another request."""
    app = Response()
    headers = ((b"content-length", b"3"), (b"transfer-encoding", b"chunked"))
    status, _, body = await answer(app, *headers)
    assert (400, "invalid_value") == (status, code_of(body))


async def test_control_headers_do_not_reach_the_application() -> None:
    """With either separator and any case; the id is one, and safe."""
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await Response()(scope, receive, send)

    given = [
        (b"X-Request-Timeout-Seconds", b"1"),
        (b"x_request_disconnect_disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"x"),
        (b"x-session-id", b"y"),
        (b"x-serve-router-y", b"z"),
        (b"x-request-id", b"a b"),
        (b"x-request-id", b"c"),
        (b"accept", b"*/*"),
    ]
    _, headers, _ = await answer(app, *given)
    assert [b"accept", b"x-request-id"] == [name for name, _ in seen]
    assert headers["x-request-id"] == seen[1][1].decode()


async def test_a_websocket_is_closed() -> None:
    """There is none here."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    edge = EdgeMiddleware(Response(), RequestLimits(100))
    await edge({"type": "websocket", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("said", "behind_haproxy", "client"),
    [
        (b"192.0.2.7:4711", True, "192.0.2.7"),
        (b"2001:db8::7:4711", True, "2001:db8::7"),
        (b"nonsense", True, "10.0.0.1"),
        (b"192.0.2.7:4711", False, "10.0.0.1"),
    ],
)
async def test_only_haproxy_may_say_who_calls(
    said: bytes, behind_haproxy: bool, client: str
) -> None:
    """Logins are counted by address; elsewhere anybody could send the header."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert b"x-omai-peer" not in dict(scope["headers"])
        await Response(scope["client"][0])(scope, receive, send)

    _, _, body = await answer(app, (b"x-omai-peer", said), behind_haproxy=behind_haproxy)
    assert client == body.decode()


async def test_serves_list_of_routes_is_nobodys() -> None:
    """It is answered as a path that leads nowhere."""
    got, _, body = await answer(PlainTextResponse('{"/": "omai"}'), path="/-/routes")
    assert (404, "unknown_url") == (got, code_of(body))
