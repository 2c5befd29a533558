"""The stub's answers from a plain ASGI application: LiteLLM's upstream, and the load's ceiling."""

from __future__ import annotations

from typing import Any

import orjson

WORDS = 64
WORD = " word"
ANSWER = "Hello! How can I help you today?"
DIMENSIONS = 384
VECTOR = [((index * 37) % 101) / 101 - 0.5 for index in range(DIMENSIONS)]
HEAD = {"id": "chatcmpl-stub", "created": 1_700_000_000, "model": "omai-gpt-4"}
USAGE = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}
DONE = b"data: [DONE]\n\n"


def completion(text: str) -> bytes:
    """Return a whole answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}
    return orjson.dumps(answer)


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    """Return one event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    event = {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + orjson.dumps(event) + b"\n\n"


def embeddings(vector: Any) -> bytes:
    """Return an answer of one vector, a list or float32 [D]."""
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": "text-embedding-ada-002",
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer at once."""
    if scope["type"] != "http":
        return
    raw, more = b"", True
    while more:
        message = await receive()
        raw += message.get("body", b"")
        more = message.get("more_body", False)
    body = orjson.loads(raw)
    streams = bool(body.get("stream"))
    kind = b"text/event-stream" if streams else b"application/json"
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if streams:
        for _ in range(WORDS):
            part = {"type": "http.response.body", "body": chunk({"content": WORD})}
            await send({**part, "more_body": True})
        await send({"type": "http.response.body", "body": chunk({}, "stop"), "more_body": True})
        await send({"type": "http.response.body", "body": DONE})
        return
    answer = embeddings(VECTOR) if scope["path"].endswith("embeddings") else completion(ANSWER)
    await send({"type": "http.response.body", "body": answer})
