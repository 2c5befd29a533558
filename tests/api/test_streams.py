"""Streams as bytes: comments while nothing comes, failures after the headers, cancellation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Message

from omai_ray.api.app import create_app
from omai_ray.api.sse import COMMENT
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import Overloaded
from tests.api.conftest import CHAT, Api, Exchange, chat_body

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]


class Sleeper:
    """A chat backend that says something when a test lets it."""

    def __init__(self) -> None:
        self.wakes = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.failure: Exception | None = None
        self.closed = asyncio.Event()

    async def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        try:
            await self.wakes.wait()
            if self.failure is not None:
                raise self.failure
            yield [ChatDelta(0, "Good ", tokens=1)]
            await self.goes_on.wait()
            yield [ChatDelta(0, "morning", tokens=1, finish="stop")]
        finally:
            self.closed.set()

    async def answer(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        async for deltas in self.stream(job):
            for delta in deltas:
                choices[delta.index].absorb(delta)

    async def ready(self) -> None:
        pass


def body_of(path: str) -> bytes:
    """Return a streaming request for an endpoint."""
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat_body(stream=True),
        "/v1/completions": {"model": CHAT, "prompt": "Hi", "stream": True},
        "/v1/responses": {"model": CHAT, "input": "Hi", "stream": True},
    }
    return json.dumps(asked[path]).encode()


async def asking(api: Api, sleeper: Sleeper, path: str, keep_alive_s: float) -> Exchange:
    """Return a request to an application whose model sleeps."""
    models = api.services.models
    chat = replace(models.chats[CHAT], backend=sleeper)
    ingress = api.services.ingress.model_copy(update={"keep_alive_s": keep_alive_s})
    services = replace(api.services, models=replace(models, chats={CHAT: chat}), ingress=ingress)
    return Exchange(create_app(services), path, await api.headers(), body_of(path))


def text_of(path: str, body: bytes) -> str:
    """Return what a stream says, comments left out."""
    text = ""
    for block in body.decode().split("\n\n"):
        for line in block.split("\n"):
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if path == "/v1/responses":
                text += event["delta"] if event["type"].endswith("text.delta") else ""
            else:
                for choice in event["choices"]:
                    text += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text


@pytest.mark.parametrize("path", PATHS)
async def test_comments_are_sent_while_a_model_wakes_and_while_it_thinks(
    api: Api, path: str
) -> None:
    """The headers too: a proxy on the way hears that somebody is there. They are no events."""
    sleeper = Sleeper()
    exchange = await asking(api, sleeper, path, 0.01)
    running = asyncio.create_task(exchange.run())
    await exchange.until_sent(4)
    assert exchange.status == 200
    assert exchange.body == COMMENT * (len(exchange.sent) - 1)
    sleeper.wakes.set()
    before = len(exchange.sent)
    await exchange.until_sent(before + 3)
    sleeper.goes_on.set()
    await running
    assert text_of(path, exchange.body) == "Good morning"
    after_first = exchange.body.split(b"Good ", 1)[1]
    assert COMMENT in after_first
    assert not exchange.sent[-1].get("more_body")


@pytest.mark.parametrize("path", PATHS)
async def test_no_comment_is_sent_where_a_model_answers_soon(api: Api, path: str) -> None:
    """The stream is what it would be without."""
    sleeper = Sleeper()
    sleeper.wakes.set()
    sleeper.goes_on.set()
    exchange = await asking(api, sleeper, path, 60)
    await exchange.run()
    assert text_of(path, exchange.body) == "Good morning"
    assert COMMENT not in exchange.body


@pytest.mark.parametrize("path", PATHS)
async def test_a_failure_before_the_headers_keeps_its_status(api: Api, path: str) -> None:
    """As long as nobody was told to wait."""
    sleeper = Sleeper()
    sleeper.failure = Overloaded("Too many wait.")
    sleeper.wakes.set()
    exchange = await asking(api, sleeper, path, 60)
    await exchange.run()
    assert exchange.status == 503
    assert json.loads(exchange.body)["error"]["code"] == "server_is_overloaded"


@pytest.mark.parametrize("path", PATHS)
async def test_a_failure_after_a_comment_is_an_event(api: Api, path: str) -> None:
    """The last of the stream, without [DONE]; the connection is closed properly."""
    sleeper = Sleeper()
    sleeper.failure = Overloaded("Too many wait.")
    exchange = await asking(api, sleeper, path, 0.01)
    running = asyncio.create_task(exchange.run())
    await exchange.until_sent(2)
    sleeper.wakes.set()
    await running
    assert exchange.status == 200
    assert b"Too many wait." in exchange.body
    assert b"[DONE]" not in exchange.body
    assert not exchange.sent[-1].get("more_body")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("when", ["before the headers", "while waiting", "in mid-stream"])
async def test_leaving_reaches_the_engine(api: Api, path: str, when: str) -> None:
    """Whenever the client leaves, and the request ends."""
    sleeper = Sleeper()
    exchange = await asking(api, sleeper, path, 60 if when == "before the headers" else 0.01)
    running = asyncio.create_task(exchange.run())
    if when == "in mid-stream":
        sleeper.wakes.set()
    if when == "before the headers":
        await asyncio.sleep(0)
    else:
        await exchange.until_sent(2)
    exchange.left.set()
    await asyncio.wait_for(running, 20)
    if when != "before the headers":
        assert sleeper.closed.is_set()
    assert b"[DONE]" not in exchange.body


async def test_a_client_that_takes_nothing_more_still_can_leave(api: Api) -> None:
    """While a comment is stuck on its way out."""
    sleeper = Sleeper()
    exchange = await asking(api, sleeper, PATHS[0], 0.01)
    running = asyncio.create_task(exchange.run())
    await exchange.until_sent(2)
    exchange.blocked = asyncio.Event()
    await exchange.until_sent(3)
    exchange.left.set()
    await asyncio.wait_for(running, 20)
    assert sleeper.closed.is_set()


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_a_connection_that_fails_ends_the_generation(api: Api, taken: int) -> None:
    """As leaving does, whichever message it was that could not be sent."""
    sleeper = Sleeper()
    sleeper.wakes.set()
    exchange = await asking(api, sleeper, PATHS[0], 60)
    send = exchange._send

    async def failing(message: Message) -> None:
        if len(exchange.sent) >= taken:
            raise OSError("connection reset")
        await send(message)

    exchange._send = failing  # type: ignore[method-assign]
    running = asyncio.create_task(exchange.run())
    sleeper.goes_on.set()
    await asyncio.wait_for(running, 20)
    assert sleeper.closed.is_set()
