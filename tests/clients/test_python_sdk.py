"""The Python SDK against the real application."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import omai
import pytest

from omai_ray.identity.keys import generate
from tests.clients.conftest import Live

CHAT, EMBEDDING = "omai-gpt-4", "text-embedding-ada-002"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
FOX = "The quick brown fox"
README = Path(__file__).parents[2] / "clients" / "python" / "README.md"
# The API reference's own, to the letter.
EXAMPLE = """\
from omai import OMAi

client = OMAi(api_key="your-api-key")

response = client.chat.completions.create(
    model="omai-gpt-4",
    messages=[{"role": "user", "content": "Hello!"}]
)

print(response.choices[0].message.content)
"""


@pytest.fixture
def client(live: Live) -> Iterator[omai.OMAi]:
    """Give a client with a key, which does not retry."""
    with omai.OMAi(api_key=live.key, base_url=live.base_url, max_retries=0) as client:
        yield client


@pytest.fixture
def user(live: Live) -> Iterator[omai.OMAi]:
    """Give a client that logs in."""
    with omai.OMAi(
        username=live.username, password=live.password, base_url=live.base_url
    ) as client:
        yield client
        client.logout()


def test_example_of_the_reference_runs_as_it_is_written(live: Live) -> None:
    """Only the key is put in, and the environment names the server; the README shows the same."""
    assert EXAMPLE in README.read_text(encoding="utf-8")
    code = EXAMPLE.replace("your-api-key", live.key)
    environment = {**os.environ, "OMAI_BASE_URL": live.base_url, "OPENAI_API_KEY": "not-this-one"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ("", 0) == (done.stderr, done.returncode)
    assert done.stdout.endswith("\n")


def test_generated_keys_are_well_formed_to_the_sdk() -> None:
    """Server and SDK agree on the checksum, for any one wrong character too."""
    for _ in range(50):
        _, key = generate()
        omai.OMAi(api_key=key).close()
        wrong = key[:-20] + ("a" if key[-20] != "a" else "b") + key[-19:]
        with pytest.raises(omai.CredentialsError):
            omai.OMAi(api_key=wrong)


def test_stream_adds_up_to_the_answer(client: omai.OMAi) -> None:
    """Chunk by chunk, and with the usage at the end."""
    options: Any = {"model": CHAT, "messages": HELLO, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**options)
    with client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert whole.usage.total_tokens == chunks[-1].usage.total_tokens


async def test_async_client_does_the_same(live: Live) -> None:
    """Several calls at once, one of them streaming."""
    async with omai.AsyncOMAi(api_key=live.key, base_url=live.base_url) as client:

        async def stream() -> str:
            chunks = await client.chat.completions.create(
                model=CHAT, messages=HELLO, temperature=0, max_tokens=12, stream=True
            )
            deltas = [chunk.choices[0].delta.content async for chunk in chunks]
            return "".join(delta or "" for delta in deltas)

        whole, text, embedded, models = await asyncio.gather(
            client.chat.completions.create(
                model=CHAT, messages=HELLO, temperature=0, max_tokens=12
            ),
            stream(),
            client.embeddings.create(model=EMBEDDING, input=FOX),
            client.models.list(),
        )
    assert whole.choices[0].message.content == text
    assert embedded.data[0].embedding
    assert {CHAT, EMBEDDING} <= {model.id for model in models.data}


def test_completions_and_responses_are_openais(client: omai.OMAi) -> None:
    """Their resources work as they are."""
    completion = client.completions.create(model=CHAT, prompt="Hello", max_tokens=4)
    assert completion.choices[0].finish_reason
    response = client.responses.create(model=CHAT, input="Hello!", max_output_tokens=16)
    assert response.output_text is not None
    with client.responses.create(
        model=CHAT, input="Hello!", max_output_tokens=16, stream=True
    ) as stream:
        assert "response.created" == next(iter(stream)).type


def test_files_are_openais_and_a_login_may_keep_them(user: omai.OMAi) -> None:
    """By its session, as by a key."""
    made = user.files.create(file=("input.jsonl", b"x" * 200_000), purpose="batch")
    assert user.files.retrieve(made.id) == made
    assert user.files.content(made.id).read() == b"x" * 200_000
    assert user.files.delete(made.id).deleted


def test_embeddings_travel_as_base64_and_arrive_as_numbers(client: omai.OMAi) -> None:
    """The same numbers as those that travel as text."""
    packed = client.embeddings.create(model=EMBEDDING, input=[FOX, "another"])
    plain = client.embeddings.create(
        model=EMBEDDING, input=[FOX, "another"], encoding_format="float"
    )
    assert [0, 1] == [one.index for one in packed.data]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert all(
            math.isclose(a, b, abs_tol=1e-6)
            for a, b in zip(one.embedding, other.embedding, strict=True)
        )


def test_models_are_listed_and_retrieved(client: omai.OMAi) -> None:
    """Those that the key may use."""
    assert {CHAT, EMBEDDING} <= {model.id for model in client.models.list()}
    assert CHAT == client.models.retrieve(CHAT).id


def test_raw_response_has_the_limits_headers(live: Live) -> None:
    """Of a tier that has limits."""
    with omai.OMAi(api_key=live.new_key("basic"), base_url=live.base_url) as client:
        raw = client.embeddings.with_raw_response.create(model=EMBEDDING, input=FOX)
    assert "60" == raw.headers["x-ratelimit-limit-requests"]
    assert raw.headers["x-request-id"]
    assert raw.parse().data[0].embedding


def test_basic_tier_is_exhausted_by_its_61st_request(live: Live) -> None:
    """With the API's words, and the time to wait."""
    with omai.OMAi(api_key=live.new_key("basic"), base_url=live.base_url, max_retries=0) as client:
        for _ in range(60):
            client.embeddings.create(model=EMBEDDING, input=FOX)
        with pytest.raises(omai.RateLimitError) as raised:
            client.embeddings.create(model=EMBEDDING, input=FOX)
    assert ("requests", "rate_limit_exceeded") == (raised.value.type, raised.value.code)
    assert int(raised.value.response.headers["retry-after"]) >= 1
    assert int(raised.value.response.headers["retry-after-ms"]) >= 1


def test_errors_name_what_is_wrong(client: omai.OMAi) -> None:
    """As classes, codes and messages, with the request's id."""
    with pytest.raises(omai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert "model_not_found" == missing.value.code
    assert missing.value.request_id
    with pytest.raises(omai.BadRequestError, match="temperature") as bad:
        client.chat.completions.create(model=CHAT, messages=HELLO, temperature=200)
    assert "temperature" == bad.value.param
    with pytest.raises(omai.AuthenticationError) as unknown:
        client.with_options(api_key=generate()[1]).models.list()
    assert "invalid_api_key" == unknown.value.code
    with pytest.raises(omai.NotFoundError):
        client.images.generate(prompt="a fox")


def test_session_serves_every_endpoint(user: omai.OMAi) -> None:
    """After a login that nobody asked for."""
    assert user.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=4).choices
    assert user.embeddings.create(model=EMBEDDING, input=FOX).data
    assert user.tokenize(model=CHAT, prompt="Hello!").count
    assert CHAT in {model.id for model in user.models.list()}


def test_session_that_was_ended_elsewhere_is_opened_again(live: Live, user: omai.OMAi) -> None:
    """A user's other sessions can be ended at any time."""
    user.models.list()
    with omai.OMAi(username=live.username, password=live.password, base_url=live.base_url) as other:
        ended: Any = other.delete("/account/sessions", cast_to=object)
        other.logout()
    assert ended["count"] >= 1
    assert user.embeddings.create(model=EMBEDDING, input=FOX).data


async def test_async_session_is_opened_once(live: Live) -> None:
    """For all tasks together."""
    async with omai.AsyncOMAi(
        username=live.username, password=live.password, base_url=live.base_url
    ) as client:
        await client.delete("/account/sessions", cast_to=object)
        await asyncio.gather(*(client.models.list() for _ in range(5)))
        listed: Any = await client.get("/account/sessions", cast_to=object)
        await client.logout()
    assert [True] == [session["current"] for session in listed["data"]]


def test_wrong_password_is_an_authentication_error(live: Live) -> None:
    """By the name of a user who does not exist: their failures count for nobody."""
    with (
        omai.OMAi(username="nobody", password="not this", base_url=live.base_url) as client,
        pytest.raises(omai.AuthenticationError, match="username or password"),
    ):
        client.models.list()


def test_usage_is_what_was_used(live: Live) -> None:
    """By model and key, and by day."""
    began = int(time.time()) // 3600 * 3600
    key = live.new_key("pro")
    with omai.OMAi(api_key=key, base_url=live.base_url) as client:
        used = client.embeddings.create(model=EMBEDDING, input=FOX).usage
        client.embeddings.create(model=EMBEDDING, input=FOX)
        chat = client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=4).usage
        rows = list(client.usage.list(group_by=["model", "key"]))
        daily = client.usage.list(start_time=began, bucket_width="1d").data
        before = client.usage.list(end_time=began).data
    by_model = {row.model: row for row in rows}
    assert {CHAT, EMBEDDING} == set(by_model)
    assert {key.removeprefix("omai-sk-").split("_")[0]} == {row.key_id for row in rows}
    assert (2, 2 * used.total_tokens) == (
        by_model[EMBEDDING].requests,
        by_model[EMBEDDING].total_tokens,
    )
    assert chat is not None
    assert (chat.prompt_tokens, chat.completion_tokens) == (
        by_model[CHAT].prompt_tokens,
        by_model[CHAT].completion_tokens,
    )
    assert 3 == sum(row.requests for row in daily)
    assert all(row.start_time is not None for row in daily)
    assert [] == before


def test_tokens_become_text_again(client: omai.OMAi) -> None:
    """And messages become what the chat template writes."""
    tokenized = client.tokenize(
        model=CHAT, prompt="Hello!", add_special_tokens=False, return_token_strs=True
    )
    assert tokenized.count == len(tokenized.tokens)
    assert tokenized.token_strs is not None
    assert tokenized.count == len(tokenized.token_strs)
    assert "Hello!" == client.detokenize(model=CHAT, tokens=tokenized.tokens).prompt
    rendered = client.tokenize(model=CHAT, messages=HELLO)
    usage = client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=1).usage
    assert usage is not None
    assert rendered.count == usage.prompt_tokens


def test_documents_are_ranked_and_scored_alike(client: omai.OMAi) -> None:
    """A text is closest to itself."""
    documents = ["something else", FOX]
    ranked = client.rerank(model=EMBEDDING, query=FOX, documents=documents)
    assert [1, 0] == [result.index for result in ranked.results]
    assert [FOX] == [
        result.document.text for result in ranked.results[:1] if result.document is not None
    ]
    bare = client.rerank(
        model=EMBEDDING, query=FOX, documents=documents, top_n=1, return_documents=False
    )
    assert [(1, None)] == [(result.index, result.document) for result in bare.results]
    scored = client.score(model=EMBEDDING, text_1=FOX, text_2=documents)
    by_index = {result.index: result.relevance_score for result in ranked.results}
    for score in scored.data:
        assert math.isclose(by_index[score.index], score.score, abs_tol=1e-5)
    assert scored.usage.total_tokens == ranked.usage.total_tokens > 0
