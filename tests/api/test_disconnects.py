"""Clients that leave: what ran for them ends, is settled and is recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select
from starlette.types import Message

from omai_ray.engines.chat.text import ChatDelta
from omai_ray.errors import Overloaded
from omai_ray.ledger.ledger import UsageRecord
from omai_ray.store.tables import usage
from tests.api.conftest import EMBEDDING, HELLO, Api, Exchange, bearer, chat_body, events

ENDLESS = {"temperature": 1, "seed": 3, "max_tokens": 900, "logit_bias": {"1": -100}}


async def usage_rows(api: Api) -> list[Any]:
    """Return every usage record."""
    async with api.ledger.store.reading() as connection:
        return list((await connection.execute(select(usage))).mappings())


async def tokens_left(api: Api, headers: dict[str, str]) -> int:
    """Return what is left of an account's tokens, by the headers of one more small request."""
    response = await api.embed(headers)
    return int(response.headers["x-ratelimit-remaining-tokens"])


async def test_leaving_in_mid_stream_ends_settles_and_records(api: Api) -> None:
    """The engine's stream is closed; what was used is charged, with status 499."""
    _, key = await api.key("basic")
    body = json.dumps(chat_body(**ENDLESS, stream=True)).encode()
    exchange = Exchange(api.app, "/v1/chat/completions", bearer(key), body)
    running = asyncio.create_task(exchange.run())
    await exchange.until_sent(3)
    exchange.left.set()
    await running
    assert exchange.status == 200
    assert b"[DONE]" not in exchange.body
    assert api.chat.running == 0
    (row,) = await usage_rows(api)
    assert row["status"] == 499
    assert 0 < row["completion_tokens"] < 900
    spent = row["prompt_tokens"] + row["completion_tokens"]
    embedded = (await api.embed(await api.headers())).json()["usage"]["total_tokens"]
    assert await tokens_left(api, bearer(key)) == 40_000 - spent - embedded


async def test_leaving_before_the_headers_are_out_settles_too(api: Api) -> None:
    """A client whose connection takes no more bytes may leave before the first frame."""
    _, key = await api.key("basic")
    body = json.dumps(chat_body(**ENDLESS, stream=True)).encode()
    exchange = Exchange(api.app, "/v1/chat/completions", bearer(key), body)
    exchange.blocked = asyncio.Event()
    running = asyncio.create_task(exchange.run())
    await exchange.until_sent(1)
    exchange.left.set()
    await running
    assert api.chat.running == 0
    (row,) = await usage_rows(api)
    assert row["status"] == 499


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_the_model_works_cancels_it(
    api: Api, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first token of a stream, and at any time of a whole answer."""
    _, key = await api.key("basic")
    started, ended = asyncio.Event(), asyncio.Event()

    async def waiting(*_: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def never(_: object) -> AsyncIterator[list[ChatDelta]]:
        await waiting()
        yield []

    monkeypatch.setattr(api.chat, "stream", never)
    monkeypatch.setattr(api.chat, "answer", waiting)
    body = json.dumps(chat_body(stream=stream)).encode()
    exchange = Exchange(api.app, "/v1/chat/completions", bearer(key), body)
    running = asyncio.create_task(exchange.run())
    await started.wait()
    exchange.left.set()
    await running
    assert ended.is_set()
    assert exchange.status == 499
    (row,) = await usage_rows(api)
    assert (row["status"], row["prompt_tokens"], row["completion_tokens"]) == (499, 0, 0)
    embedded = (await api.embed(await api.headers())).json()["usage"]["total_tokens"]
    assert await tokens_left(api, bearer(key)) == 40_000 - embedded


async def test_leaving_while_an_embedding_waits_cancels_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend's call is cancelled, and the reservation returned."""
    _, key = await api.key("basic")
    started = asyncio.Event()

    async def never(_: object, __: str) -> Any:
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(api.embedding, "embed", never)
    body = json.dumps({"model": EMBEDDING, "input": "fox"}).encode()
    exchange = Exchange(api.app, "/v1/embeddings", bearer(key), body)
    running = asyncio.create_task(exchange.run())
    await started.wait()
    exchange.left.set()
    await running
    (row,) = await usage_rows(api)
    assert (row["status"], row["prompt_tokens"]) == (499, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_request_is_settled_and_recorded(api: Api, stream: bool) -> None:
    """A server that cancels the request's task, as Serve does, loses nothing either."""
    _, key = await api.key("basic")
    body = json.dumps(chat_body(**ENDLESS, stream=stream)).encode()
    exchange = Exchange(api.app, "/v1/chat/completions", bearer(key), body)
    running = asyncio.create_task(exchange.run())
    if stream:
        await exchange.until_sent(3)
    else:
        await api.chat.opened.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert api.chat.running == 0
    (row,) = await usage_rows(api)
    assert row["status"] == 499


async def test_leaving_while_the_body_is_read_is_no_failure(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is recorded, and nothing is logged as an error."""
    _, key = await api.key("basic")
    exchange = Exchange(api.app, "/v1/chat/completions", bearer(key))

    async def cut_off() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    monkeypatch.setattr(exchange, "_receive", cut_off)
    await exchange.run()
    assert exchange.status == 499
    assert await usage_rows(api) == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_that_fails_is_a_client_that_left(
    api: Api, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server raises instead of a disconnect ends the answer all the same."""
    body = json.dumps(chat_body(**ENDLESS, stream=stream)).encode()
    exchange = Exchange(api.app, "/v1/chat/completions", await api.headers(), body)
    receive = exchange._receive

    async def broken() -> Message:
        if exchange.bodies:
            return await receive()
        await api.chat.opened.wait()
        raise ConnectionError

    monkeypatch.setattr(exchange, "_receive", broken)
    await exchange.run()
    assert b"[DONE]" not in exchange.body
    assert api.chat.running == 0
    (row,) = await usage_rows(api)
    assert row["status"] == 499


async def test_usage_that_cannot_be_recorded_is_an_error_and_no_done(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is complete only when its record is durable."""

    async def full(_: object, record: UsageRecord) -> None:
        raise Overloaded("The database does not answer.")

    monkeypatch.setattr(type(api.ledger), "record", full)
    headers = await api.headers()
    streamed = await api.complete(headers, stream=True)
    assert streamed.status_code == 200
    assert events(streamed.text)[-1]["error"]["code"] == "server_is_overloaded"
    whole = await api.complete(headers)
    assert whole.status_code == 503


@pytest.mark.parametrize(("path", "status"), [("/v1/chat/completions", 200), ("/v1/nothing", 404)])
async def test_a_malformed_host_or_query_fails_no_request(api: Api, path: str, status: int) -> None:
    """Nor does it lose a reservation: what is not needed is not parsed."""
    _, key = await api.key("basic")
    for host, query in ((b"[", b""), (b"a b", b""), (b"test", b"\xff=\xfe")):
        exchange = Exchange(api.app, path, bearer(key), json.dumps(chat_body()).encode())
        exchange.scope["headers"][0] = (b"host", host)
        exchange.scope["query_string"] = query
        await exchange.run()
        assert exchange.status == status


@pytest.mark.fault(12)
async def test_a_hundred_leaving_clients_leave_nothing_behind(api: Api) -> None:
    """All their streams end, and each has one record."""
    headers = await api.headers()
    body = json.dumps(chat_body(messages=HELLO, **ENDLESS, stream=True)).encode()
    exchanges = [Exchange(api.app, "/v1/chat/completions", headers, body) for _ in range(100)]
    running = [asyncio.create_task(exchange.run()) for exchange in exchanges]
    await asyncio.gather(*(exchange.until_sent(1) for exchange in exchanges[:10]))
    for exchange in exchanges:
        exchange.left.set()
    await asyncio.gather(*running)
    assert api.chat.running == 0
    rows = await usage_rows(api)
    assert len(rows) == 100
    assert all(row["status"] == 499 or row["finish_reason"] == "length" for row in rows)
    assert (await api.complete(headers)).status_code == 200
