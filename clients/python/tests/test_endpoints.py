from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from omai_stub import HELLO, Answer, Stub, refusal, settle

import omai
from omai import types

Make = Callable[..., Any]
COUNT = {"prompt_tokens": 5, "total_tokens": 5}
RERANKED = {
    "id": "rerank-1",
    "model": "m",
    "results": [
        {"index": 1, "relevance_score": 0.5, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.25},
    ],
    "usage": COUNT,
}
SCORED = {
    "id": "score-1",
    "object": "list",
    "created": 1,
    "model": "m",
    "data": [{"index": 0, "object": "score", "score": 0.5}],
    "usage": COUNT,
}
TOKENS = {"count": 2, "max_model_len": 8, "tokens": [1, 2], "token_strs": None}
USED = {
    "object": "list",
    "data": [
        {
            "object": "usage",
            "start_time": 3600,
            "account_id": None,
            "model": "m",
            "key_id": None,
            "requests": 2,
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "cached_tokens": 1,
            "total_tokens": 7,
            "cost": 0.5,
        }
    ],
}


async def test_rerank(make: Make, stub: Stub) -> None:
    """Documents come back with scores, and as text where the server sends it."""
    stub.queue.append(Answer(body=RERANKED))
    client = make(api_key="k", base_url=stub.base_url)
    ranked = await settle(client.rerank(model="m", query="q", documents=("a", "b"), top_n=2))
    assert isinstance(ranked, types.RerankResponse)
    assert [(1, 0.5), (0, 0.25)] == [(r.index, r.relevance_score) for r in ranked.results]
    assert [types.RerankDocument(text="b"), None] == [r.document for r in ranked.results]
    assert 5 == ranked.usage.total_tokens
    seen = stub.seen[0]
    assert ("POST", "/v1/rerank") == (seen.method, seen.path)
    assert {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 2} == seen.json


async def test_score(make: Make, stub: Stub) -> None:
    """One text with one or with several."""
    stub.queue.append(Answer(body=SCORED))
    client = make(api_key="k", base_url=stub.base_url)
    scored = await settle(client.score(model="m", text_1="a", text_2=["b", "c"]))
    assert isinstance(scored, types.ScoreResponse)
    assert [0.5] == [score.score for score in scored.data]
    seen = stub.seen[0]
    assert ("POST", "/v1/score") == (seen.method, seen.path)
    assert {"model": "m", "text_1": "a", "text_2": ["b", "c"]} == seen.json


@pytest.mark.parametrize(("prefix", "expected"), [("", "/tokenize"), ("/omai", "/omai/tokenize")])
async def test_tokenize_is_beside_v1(make: Make, stub: Stub, prefix: str, expected: str) -> None:
    """It is no part of OpenAI's API; a prefix in front of /v1 stays."""
    stub.queue.append(Answer(body=TOKENS))
    client = make(api_key="k", base_url=stub.base_url.replace("/v1", f"{prefix}/v1"))
    tokenized = await settle(client.tokenize(model="m", prompt="text", add_special_tokens=False))
    assert isinstance(tokenized, types.TokenizeResponse)
    assert (2, 8, [1, 2], None) == (
        tokenized.count,
        tokenized.max_model_len,
        tokenized.tokens,
        tokenized.token_strs,
    )
    assert expected == stub.seen[0].path
    assert {"model": "m", "prompt": "text", "add_special_tokens": False} == stub.seen[0].json
    assert "Bearer k" == stub.seen[0].headers["Authorization"]


async def test_messages_are_tokenized_with_tools(make: Make, stub: Stub) -> None:
    """Any iterables of them, and answers of the API among them."""
    client = make(api_key="k", base_url=stub.base_url)
    completion = await settle(client.chat.completions.create(model="m", messages=HELLO))
    tool = {"type": "function", "function": {"name": "f"}}
    stub.queue.append(Answer(body=TOKENS))
    await settle(
        client.tokenize(
            model="m",
            messages=iter([*HELLO, completion.choices[0].message]),
            tools=iter([tool]),
            return_token_strs=True,
        )
    )
    assert {
        "model": "m",
        "messages": [*HELLO, {"role": "assistant", "content": "Hello!"}],
        "tools": [tool],
        "return_token_strs": True,
    } == stub.seen[1].json


async def test_tokenize_takes_a_prompt_or_messages(make: Make) -> None:
    """Exactly one of them."""
    client = make(api_key="k")
    for options in ({}, {"prompt": "text", "messages": HELLO}):
        with pytest.raises(TypeError, match="prompt= or messages="):
            await settle(client.tokenize(model="m", **options))


async def test_detokenize(make: Make, stub: Stub) -> None:
    """Tokens become text."""
    stub.queue.append(Answer(body={"prompt": "text"}))
    client = make(api_key="k", base_url=stub.base_url)
    text = await settle(client.detokenize(model="m", tokens=(1, 2)))
    assert isinstance(text, types.DetokenizeResponse)
    assert "text" == text.prompt
    assert ("/detokenize", {"model": "m", "tokens": [1, 2]}) == (
        stub.seen[0].path,
        stub.seen[0].json,
    )


async def test_usage_is_asked_for_in_the_servers_terms(make: Make, stub: Stub) -> None:
    """Times as seconds or datetimes, groups by name; what is not given is left to the server."""
    stub.queue.extend([Answer(body=USED)] * 3)
    client = make(api_key="k", base_url=stub.base_url)
    end = datetime.fromtimestamp(7200, timezone(timedelta(hours=2)))
    page = await settle(
        client.usage.list(
            start_time=3600, end_time=end, bucket_width="1h", group_by=["model", "key"]
        )
    )
    assert [types.UsageRow] == [type(row) for row in page.data]
    row = page.data[0]
    assert (3600, "m", None) == (row.start_time, row.model, row.key_id)
    assert (2, 3, 4, 1, 7, 0.5) == (
        row.requests,
        row.prompt_tokens,
        row.completion_tokens,
        row.cached_tokens,
        row.total_tokens,
        row.cost,
    )
    await settle(client.usage.list(group_by="key"))
    await settle(client.usage.list())
    assert {("GET", "/v1/usage")} == {(seen.method, seen.path) for seen in stub.seen}
    assert [
        {
            "start_time": ["3600"],
            "end_time": ["7200"],
            "bucket_width": ["1h"],
            "group_by": ["model,key"],
        },
        {"group_by": ["key"]},
        {},
    ] == [seen.query for seen in stub.seen]


async def test_usage_is_iterated_over(make: Make, stub: Stub) -> None:
    """Like openai's other lists."""
    stub.queue.append(Answer(body=USED))
    client = make(api_key="k", base_url=stub.base_url)
    if isinstance(client, omai.OMAi):
        found = [row.model for row in client.usage.list()]
    else:
        found = [row.model async for row in client.usage.list()]
    assert ["m"] == found


def test_datetime_without_a_time_zone_is_refused(make: Make) -> None:
    """Whose midnight it is changes the answer."""
    with pytest.raises(ValueError, match="time zone"):
        make(api_key="k").usage.list(start_time=datetime(2026, 11, 1))


async def test_raw_responses_of_own_endpoints(make: Make, stub: Stub) -> None:
    """Headers are there, and the body parses to the same type."""
    bodies: list[Any] = [RERANKED, SCORED, TOKENS, {"prompt": "text"}, USED, USED]
    stub.queue.extend(Answer(body=body, headers={"x-request-id": "r"}) for body in bodies)
    client = make(api_key="k", base_url=stub.base_url)
    raw = client.with_raw_response
    for call, expected in (
        (raw.rerank(model="m", query="q", documents=["a"]), types.RerankResponse),
        (raw.score(model="m", text_1="a", text_2="b"), types.ScoreResponse),
        (raw.tokenize(model="m", prompt="a"), types.TokenizeResponse),
        (raw.detokenize(model="m", tokens=[1]), types.DetokenizeResponse),
    ):
        response = await settle(call)
        assert "r" == response.headers["x-request-id"]
        assert expected is type(response.parse())
    for listing in (raw.usage.list(), client.usage.with_raw_response.list()):
        page = (await settle(listing)).parse()
        assert [types.UsageRow] == [type(row) for row in page.data]


async def test_streaming_responses_of_own_endpoints(make: Make, stub: Stub) -> None:
    """The caller reads the body."""
    bodies: list[Any] = [RERANKED, SCORED, TOKENS, {"prompt": "text"}, USED, USED]
    stub.queue.extend(Answer(body=body) for body in bodies)
    client = make(api_key="k", base_url=stub.base_url)
    streaming = client.with_streaming_response
    for context, expected in (
        (streaming.rerank(model="m", query="q", documents=["a"]), RERANKED),
        (streaming.score(model="m", text_1="a", text_2="b"), SCORED),
        (streaming.tokenize(model="m", prompt="a"), TOKENS),
        (streaming.detokenize(model="m", tokens=[1]), {"prompt": "text"}),
        (streaming.usage.list(), USED),
        (client.usage.with_streaming_response.list(), USED),
    ):
        if isinstance(client, omai.OMAi):
            with context as response:
                assert expected == response.json()
        else:
            async with context as response:
                assert expected == await response.json()


async def test_options_of_one_call(make: Make, stub: Stub) -> None:
    """Headers, query, body and timeout, as openai's methods take them."""
    stub.queue.append(Answer(body=RERANKED))
    await settle(
        make(api_key="k", base_url=stub.base_url).rerank(
            model="m",
            query="q",
            documents=["a"],
            return_documents=False,
            extra_headers={"X-More": "1"},
            extra_query={"more": "2"},
            extra_body={"more": 3},
            timeout=4,
        )
    )
    seen = stub.seen[0]
    assert ("1", ["2"], 3) == (seen.headers["X-More"], seen.query["more"], seen.json["more"])
    assert seen.json["return_documents"] is False
    assert "4" == seen.headers["x-stainless-read-timeout"]


async def test_resources_of_openai_work_unchanged(make: Make, stub: Stub) -> None:
    """Streaming chat, and embeddings that travel as base64."""
    client = make(api_key="k", base_url=stub.base_url)
    deltas = [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {}]
    chunk = '{{"id": "c", "choices": [{{"index": 0, "delta": {}}}]}}'
    lines = [f"data: {chunk.format(str(delta).replace(chr(39), chr(34)))}\n\n" for delta in deltas]
    body = "".join([*lines, "data: [DONE]\n\n"]).encode()
    stub.queue.append(Answer(body=body, headers={"Content-Type": "text/event-stream"}))
    stream = await settle(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    chunks = list(stream) if isinstance(client, omai.OMAi) else [chunk async for chunk in stream]
    assert "Hello" == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    packed = base64.b64encode(struct.pack("<2f", 0.5, -1)).decode()
    data = [{"object": "embedding", "index": 0, "embedding": packed}]
    stub.queue.append(Answer(body={"object": "list", "model": "m", "data": data, "usage": COUNT}))
    embedded = await settle(client.embeddings.create(model="m", input="text"))
    assert [0.5, -1.0] == embedded.data[0].embedding
    assert "base64" == stub.seen[-1].json["encoding_format"]


async def test_what_omai_has_not_is_not_found(make: Make, stub: Stub) -> None:
    """Images, audio and the like get the server's answer."""
    stub.queue.append(refusal(404))
    client = make(api_key="k", base_url=stub.base_url)
    with pytest.raises(omai.NotFoundError):
        await settle(client.images.generate(prompt="a fox"))


async def test_copy_keeps_what_is_not_changed(make: Make, stub: Stub) -> None:
    """Key, base URL, headers, query, timeout, retries and connections."""
    client = make(
        api_key="k",
        base_url=stub.base_url,
        timeout=3,
        max_retries=5,
        default_headers={"X-One": "1"},
        default_query={"one": "1"},
    )
    copy = client.with_options()
    assert type(client) is type(copy)
    for name in ("api_key", "base_url", "timeout", "max_retries", "_client"):
        assert getattr(client, name) == getattr(copy, name)
    changed = copy.copy(
        api_key="other",
        timeout=None,
        max_retries=0,
        default_headers={"X-Two": "2"},
        set_default_query={"two": "2"},
    )
    assert ("other", None, 0) == (changed.api_key, changed.timeout, changed.max_retries)
    await settle(changed.models.list())
    seen = stub.seen[0]
    assert ("Bearer other", "1", "2") == (
        seen.headers["Authorization"],
        seen.headers["X-One"],
        seen.headers["X-Two"],
    )
    assert {"two": ["2"]} == seen.query
    with pytest.raises(ValueError, match="not both"):
        client.copy(default_headers={}, set_default_headers={})


async def test_client_is_a_context_manager(client_class: type[Any], stub: Stub) -> None:
    """It closes its connections."""
    client = client_class(api_key="k", base_url=stub.base_url)
    if isinstance(client, omai.OMAi):
        with client as entered:
            entered.models.list()
    else:
        async with client as entered:
            await entered.models.list()
    assert client.is_closed()
