from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from omai_stub import HELLO, Answer, Stub, refusal, settle

import omai

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, omai.BadRequestError),
        (401, omai.AuthenticationError),
        (403, omai.PermissionDeniedError),
        (404, omai.NotFoundError),
        (409, omai.ConflictError),
        (422, omai.UnprocessableEntityError),
        (429, omai.RateLimitError),
        (500, omai.InternalServerError),
        (503, omai.InternalServerError),
        (418, omai.APIStatusError),
    ],
)
async def test_each_status_has_its_error(
    make: Make, stub: Stub, status: int, error: type[omai.APIStatusError]
) -> None:
    """With the server's message, type and code; OMAiError and openai's own classes catch it."""
    stub.queue.append(refusal(status, {"x-request-id": "req-1"}))
    client = make(api_key="k", base_url=stub.base_url, max_retries=0)
    with pytest.raises(omai.OMAiError) as raised:
        await settle(client.chat.completions.create(model="m", messages=HELLO))
    found = raised.value
    assert error is type(found)
    assert getattr(openai, error.__name__) is error
    assert isinstance(found, omai.APIStatusError)
    assert (status, "req-1") == (found.status_code, found.request_id)
    assert ("some_type", "some_code") == (found.type, found.code)
    assert f"no: {status}" in str(found)


async def test_server_that_is_away_is_a_connection_error(make: Make, waits: list[float]) -> None:
    """It is retried, with longer and longer waits, and then raised."""
    client = make(api_key="k", base_url="http://127.0.0.1:9/v1", max_retries=3)
    with pytest.raises(omai.APIConnectionError):
        await settle(client.models.list())
    assert 3 == len(waits)
    assert sorted(waits) == waits
    assert issubclass(omai.APITimeoutError, omai.APIConnectionError)
    assert issubclass(omai.APIConnectionError, omai.OMAiError)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after-ms": "130", "Retry-After": "1"}, 0.13),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "119"}, 119.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_waits_as_long_as_it_is_told(
    make: Make, stub: Stub, waits: list[float], headers: dict[str, str], wait: float, status: int
) -> None:
    """To the millisecond where the server says so."""
    stub.queue.append(refusal(status, headers))
    client = make(api_key="k", base_url=stub.base_url)
    completion = await settle(client.chat.completions.create(model="m", messages=HELLO))
    assert "Hello!" == completion.choices[0].message.content
    assert [wait] == waits


async def test_retry_backs_off_where_it_is_told_nothing(
    make: Make, stub: Stub, waits: list[float]
) -> None:
    """Twice as long each time, less up to a quarter."""
    stub.queue.extend([refusal(500), refusal(503), refusal(429), refusal(408)])
    client = make(api_key="k", base_url=stub.base_url, max_retries=4)
    await settle(client.chat.completions.create(model="m", messages=HELLO))
    for expected, wait in zip([0.5, 1, 2, 4], waits, strict=True):
        assert 0.75 * expected <= wait <= expected


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"x-should-retry": "false", "Retry-After": "1"}),
        (503, {"x-should-retry": "false"}),
        (429, {"Retry-After": "121"}),
        (429, {"retry-after-ms": "3600000", "Retry-After": "3600"}),
        (400, {}),
        (401, {}),
        (403, {}),
    ],
)
async def test_what_cannot_help_is_not_retried(
    make: Make, stub: Stub, waits: list[float], status: int, headers: dict[str, str]
) -> None:
    """Neither what the server advises against, nor a wait of more than two minutes."""
    stub.queue.append(refusal(status, headers))
    client = make(api_key="k", base_url=stub.base_url)
    with pytest.raises(omai.APIStatusError):
        await settle(client.chat.completions.create(model="m", messages=HELLO))
    assert 1 == len(stub.seen)
    assert [] == waits


@pytest.mark.usefixtures("waits")
async def test_retry_has_the_idempotency_key_of_its_call(make: Make, stub: Stub) -> None:
    """Retries of one call share it, calls do not, and what only reads has none."""
    stub.queue.extend([refusal(503), refusal(429)])
    client = make(api_key="k", base_url=stub.base_url)
    for _ in range(2):
        await settle(client.chat.completions.create(model="m", messages=HELLO))
    await settle(client.rerank(model="m", query="q", documents=["d"]))
    await settle(client.models.list())
    keys = [seen.headers["Idempotency-Key"] for seen in stub.seen]
    assert 3 == keys.count(keys[0])
    assert 3 == len(set(keys[:5]))
    assert None not in keys[:5]
    assert keys[5] is None


async def test_idempotency_key_may_be_given(make: Make, stub: Stub) -> None:
    """So that a repeat after a crash is known as one."""
    client = make(api_key="k", base_url=stub.base_url)
    headers = {"Idempotency-Key": "mine"}
    await settle(client.rerank(model="m", query="q", documents=["d"], extra_headers=headers))
    assert ["mine"] == stub.seen[0].headers.get_all("Idempotency-Key")


async def test_user_agent_names_the_sdk(make: Make, stub: Stub) -> None:
    """And openai, whose version matters too."""
    await settle(make(api_key="k", base_url=stub.base_url).models.list())
    expected = f"omai-sdk/{omai.__version__} openai-python/{openai.__version__}"
    assert expected == stub.seen[0].headers["User-Agent"]


async def test_error_within_a_stream_is_raised(make: Make, stub: Stub) -> None:
    """After the chunks that came before it."""
    first = b'data: {"id": "c", "object": "chat.completion.chunk", "choices": []}\n\n'
    failure = b'data: {"error": {"message": "lost", "type": "server_error", "code": null}}\n\n'
    headers = {"Content-Type": "text/event-stream"}
    stub.queue.append(Answer(body=b": wait\n\n" + first + failure, headers=headers))
    client = make(api_key="k", base_url=stub.base_url)
    stream = await settle(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    chunk = next(stream) if isinstance(client, omai.OMAi) else await anext(stream)
    assert "c" == chunk.id
    with pytest.raises(omai.APIError, match="lost"):
        next(stream) if isinstance(client, omai.OMAi) else await anext(stream)
