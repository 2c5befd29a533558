from __future__ import annotations

import asyncio
import json

from omai_ray.catalog import Price
from omai_ray.telemetry import metrics
from omai_ray.telemetry.metrics import Metric
from tests.api.conftest import CHAT, EMBEDDING, Api, Exchange, chat_body
from tests.memory_sink import Memory

ENTERPRISE = (CHAT, "enterprise")


def measured(api: Api) -> Memory:
    """Return what has come since the last call."""
    memory = Memory()
    api.services.recorder.flush(memory)
    return memory


def counted(memory: Memory, metric: Metric, *labels: str) -> float:
    """Return a counter's value; 0 where it has none."""
    return memory.counts.get((metric.name, *labels), 0)


async def test_a_chat_completion_is_timed_and_its_tokens_counted(api: Api) -> None:
    """Each time has one value; what was reserved and used is what the response says."""
    response = await api.complete(await api.headers(), max_tokens=12, stream=False)
    usage, memory = response.json()["usage"], measured(api)
    for metric in (
        metrics.TIME_TO_FIRST_TOKEN,
        metrics.TIME_PER_OUTPUT_TOKEN,
        metrics.REQUEST_DURATION,
    ):
        (value,) = memory.values[metric.name, "chat", *ENTERPRISE]
        assert value >= 0
    assert counted(memory, metrics.TOKENS, *ENTERPRISE, "input") == usage["prompt_tokens"]
    assert counted(memory, metrics.TOKENS, *ENTERPRISE, "output") == usage["completion_tokens"]
    assert counted(memory, metrics.SETTLED_TOKENS, *ENTERPRISE) == usage["total_tokens"]
    reserved = usage["prompt_tokens"] + 12
    assert counted(memory, metrics.RESERVED_TOKENS, *ENTERPRISE) == reserved
    finish = response.json()["choices"][0]["finish_reason"]
    assert counted(memory, metrics.FINISHED, CHAT, finish) == 1
    assert counted(memory, metrics.REQUESTS, "/v1/chat/completions", "200") == 1
    assert memory.gauges[(metrics.REQUESTS_ACTIVE.name,)] == 0


async def test_cached_tokens_are_counted(api: Api) -> None:
    """The second request with a long prompt computes little of it again."""
    headers = await api.headers()
    messages = [{"role": "user", "content": "one two three four " * 20}]
    await api.complete(headers, messages=messages)
    measured(api)
    again = (await api.complete(headers, messages=messages)).json()["usage"]
    cached = again["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert counted(measured(api), metrics.TOKENS, *ENTERPRISE, "cached") == cached


async def test_embeddings_have_a_duration_and_no_first_token(api: Api) -> None:
    """Their vectors come at once."""
    response = await api.embed(await api.headers())
    memory = measured(api)
    assert set(memory.values) == {
        (metrics.REQUEST_DURATION.name, "embeddings", EMBEDDING, "enterprise")
    }
    tokens = response.json()["usage"]["total_tokens"]
    assert counted(memory, metrics.TOKENS, EMBEDDING, "enterprise", "input") == tokens


async def test_a_refusal_is_counted_with_its_reason(api: Api) -> None:
    """The tier basic admits 60 requests a minute."""
    headers = await api.headers("basic")
    for _ in range(60):
        assert (await api.embed(headers)).status_code == 200
    assert (await api.embed(headers)).status_code == 429
    memory = measured(api)
    assert counted(memory, metrics.REFUSALS, EMBEDDING, "basic", "requests") == 1
    assert counted(memory, metrics.REQUESTS, "/v1/embeddings", "429") == 1


async def test_missing_credentials_are_counted_and_begin_at_zero(api: Api) -> None:
    """The series is there before the first failure, or that would not look like an increase."""
    assert measured(api).counts[(metrics.AUTH_FAILURES.name,)] == 0
    for path in ("/v1/models", "/v1/a/path/that/leads/nowhere"):
        await api.client.get(path, headers={"Authorization": "Bearer omai-sk-wrong"})
    memory = measured(api)
    assert counted(memory, metrics.AUTH_FAILURES) == 2
    assert counted(memory, metrics.REQUESTS, "other", "401") == 2


async def test_paths_are_counted_by_their_template(api: Api) -> None:
    """What clients put into a path makes no series."""
    headers = await api.headers()
    for name in ("omai-gpt-4", "nonesuch"):
        await api.client.get(f"/v1/models/{name}", headers=headers)
    await api.client.get("/nowhere", headers=headers)
    memory = measured(api)
    assert counted(memory, metrics.REQUESTS, "/v1/models/{model:path}", "200") == 1
    assert counted(memory, metrics.REQUESTS, "/v1/models/{model:path}", "404") == 1
    assert counted(memory, metrics.REQUESTS, "other", "404") == 1


async def test_a_client_that_leaves_is_a_cancellation(api: Api) -> None:
    """Nothing is timed of it: it would look fast."""
    body = json.dumps(chat_body(stream=True, max_tokens=1500, logit_bias={"70": 100})).encode()
    headers = {**await api.headers(), "content-type": "application/json"}
    exchange = Exchange(api.app, "/v1/chat/completions", headers, body)
    running = asyncio.create_task(exchange.run())
    await exchange.until_sent(2)
    exchange.left.set()
    await running
    memory = measured(api)
    assert counted(memory, metrics.CANCELLATIONS, CHAT, "/v1/chat/completions") == 1
    assert (metrics.REQUEST_DURATION.name, "chat", *ENTERPRISE) not in memory.values


async def test_cost_is_by_the_catalogs_price(api: Api) -> None:
    """A model without a price has no cost."""
    headers = await api.headers()
    await api.embed(headers)
    assert counted(measured(api), metrics.COST, EMBEDDING, "enterprise") == 0
    served = api.services.models.embeddings[EMBEDDING]
    priced = served.spec.model_copy(update={"price": Price(input=1_000_000)})
    object.__setattr__(served, "spec", priced)
    tokens = (await api.embed(headers)).json()["usage"]["total_tokens"]
    assert counted(measured(api), metrics.COST, EMBEDDING, "enterprise") == tokens
