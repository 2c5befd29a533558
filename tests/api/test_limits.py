"""Tiers through HTTP: what is refused, what the headers say, what is charged and recorded."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from omai_ray.errors import ServerError
from omai_ray.ledger.ledger import UsageTotals
from tests.api.conftest import CHAT, EMBEDDING, Api, bearer, events
from tests.api.shapes import check_error

NAMES = [
    f"x-ratelimit-{kind}-{unit}"
    for kind in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
]


def limits(response: httpx.Response) -> dict[str, str]:
    """Return a response's rate limit headers."""
    return {name: response.headers[name] for name in NAMES if name in response.headers}


async def test_the_61st_request_of_a_minute_is_refused_and_the_next_second_serves(
    api: Api,
) -> None:
    """Basic: 60 a minute, refilled one a second; the message has limit, used and wait."""
    headers = await api.headers("basic")
    accepted = [await api.embed(headers, input="a") for _ in range(60)]
    assert {response.status_code for response in accepted} == {200}
    assert limits(accepted[0])["x-ratelimit-remaining-requests"] == "59"
    assert limits(accepted[-1])["x-ratelimit-remaining-requests"] == "0"
    assert limits(accepted[-1])["x-ratelimit-reset-requests"] == "1m0s"
    refused = await api.embed(headers, input="a")
    assert refused.status_code == 429
    check_error(refused.json(), type="requests", code="rate_limit_exceeded", param=None)
    assert refused.json()["error"]["message"] == (
        f"Rate limit reached for {EMBEDDING} on requests per min (RPM): Limit 60, Used 60, "
        "Requested 1. Please try again in 1s."
    )
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["retry-after-ms"] == "1000"
    assert "x-should-retry" not in refused.headers
    assert list(limits(refused)) == NAMES
    api.clock.now_s += 1
    assert (await api.embed(headers, input="a")).status_code == 200
    assert (await api.embed(headers, input="a")).status_code == 429


async def test_headers_count_both_units_on_every_inference_response(api: Api) -> None:
    """Limits, what remains, and when it is full again."""
    headers = await api.headers("basic")
    response = await api.embed(headers)
    used = response.json()["usage"]["total_tokens"]
    assert limits(response) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-limit-tokens": "40000",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-remaining-tokens": str(40_000 - used),
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-reset-tokens": f"{used * 60 * 1000 // 40_000}ms",
    }
    assert list(limits(await api.complete(headers))) == NAMES
    assert list(limits(await api.complete(headers, stream=True))) == NAMES


async def test_tokens_are_limited_by_what_is_reserved(api: Api) -> None:
    """A chat reserves prompt and n * max_tokens; what it did not use comes back."""
    headers = await api.headers("basic")
    answer = await api.complete(headers, n=2, max_tokens=5)
    assert limits(answer)["x-ratelimit-remaining-tokens"] == str(
        40_000 - answer.json()["usage"]["prompt_tokens"] - 2 * 5
    )
    prompt = len(api.tokenizer.render([{"role": "user", "content": "Hello, how are you?"}]))
    reserved = prompt + 45 * 980
    refused = await api.complete(headers, n=45, max_tokens=980)
    assert refused.status_code == 429
    check_error(refused.json(), type="tokens", code="rate_limit_exceeded", param=None)
    assert refused.json()["error"]["message"].startswith(
        f"Request too large for {CHAT} on tokens per min (TPM): Limit 40000, Requested {reserved}. "
        "The input or output tokens must be reduced"
    )
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


async def test_a_request_that_fits_later_says_when(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token bucket's wait: what is missing over the refill."""
    _, key = await api.key("basic")
    started = asyncio.Event()

    async def never(*_: object) -> None:
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(api.chat, "answer", never)
    blocked = asyncio.create_task(api.complete(bearer(key), n=40, max_tokens=900))
    await started.wait()
    refused = await api.complete(bearer(key), n=5, max_tokens=900)
    blocked.cancel()
    assert refused.status_code == 429
    prompt = len(api.tokenizer.render([{"role": "user", "content": "Hello, how are you?"}]))
    used, requested = prompt + 40 * 900, prompt + 5 * 900
    wait_ms = (used + requested - 40_000) * 60 * 1000 // 40_000
    message = refused.json()["error"]["message"]
    assert f"Limit 40000, Used {used}, Requested {requested}." in message
    assert message.endswith(f"Please try again in {wait_ms}ms.")
    with pytest.raises(asyncio.CancelledError):
        await blocked


async def test_enterprise_has_neither_limits_nor_headers(api: Api) -> None:
    """No check, no headers."""
    headers = await api.headers("enterprise")
    for _ in range(70):
        response = await api.embed(headers, input="a")
        assert response.status_code == 200
    assert limits(response) == {}


async def test_pro_has_its_own_limits(api: Api) -> None:
    """3,000 requests and 2,000,000 tokens a minute."""
    found = limits(await api.embed(await api.headers("pro")))
    assert found["x-ratelimit-limit-requests"] == "3000"
    assert found["x-ratelimit-limit-tokens"] == "2000000"


async def test_the_keys_of_an_account_share_its_limits(api: Api) -> None:
    """The buckets belong to the account."""
    account, first = await api.key("basic")
    _, second = await api.admin.keys.create(account)
    await api.embed(bearer(first))
    assert limits(await api.embed(bearer(second)))["x-ratelimit-remaining-requests"] == "58"


async def test_a_failed_request_counts_and_gives_its_tokens_back(api: Api) -> None:
    """One request is spent, no token is."""
    headers = await api.headers("basic")
    api.chat.failure = (0, ServerError("The model failed."))
    for stream in (False, True):
        assert (await api.complete(headers, stream=stream)).status_code == 500
    response = await api.embed(headers)
    used = response.json()["usage"]["total_tokens"]
    assert limits(response)["x-ratelimit-remaining-requests"] == "57"
    assert limits(response)["x-ratelimit-remaining-tokens"] == str(40_000 - used)


async def test_an_invalid_request_costs_nothing(api: Api) -> None:
    """What is refused before it is admitted leaves no trace."""
    account, key = await api.key("basic")
    assert (await api.complete(bearer(key), temperature=5)).status_code == 400
    assert (await api.embed(bearer(key), input="")).status_code == 400
    response = await api.embed(bearer(key))
    assert limits(response)["x-ratelimit-remaining-requests"] == "59"
    assert (await api.ledger.totals(account)).requests == 1


async def test_the_ledger_is_the_sum_of_the_responses(api: Api) -> None:
    """Whole, streamed, many choices, embeddings: recorded when the client sees the end."""
    account, key = await api.key("pro")
    headers = bearer(key)
    seen = []
    for fields in ({}, {"n": 3}, {"max_tokens": 1}, {"stop": "e"}):
        seen.append((await api.complete(headers, **fields)).json()["usage"])
        stream = await api.complete(
            headers, **fields, stream=True, stream_options={"include_usage": True}
        )
        seen.append(events(stream.text)[-2]["usage"])
    seen.append((await api.embed(headers, input=["a", "fox"])).json()["usage"])
    expected = UsageTotals(
        requests=len(seen),
        prompt_tokens=sum(usage["prompt_tokens"] for usage in seen),
        completion_tokens=sum(usage.get("completion_tokens", 0) for usage in seen),
        cached_tokens=sum(
            usage.get("prompt_tokens_details", {}).get("cached_tokens", 0) for usage in seen
        ),
    )
    assert expected.cached_tokens > 0
    assert expected == await api.ledger.totals(account)


async def test_a_repeated_request_id_is_counted_each_time(api: Api) -> None:
    """A client's own x-request-id cannot hide usage."""
    account, key = await api.key()
    for _ in range(3):
        await api.embed({**bearer(key), "x-request-id": "mine"})
    assert (await api.ledger.totals(account)).requests == 3
