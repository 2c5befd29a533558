"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import CHAT, CONTEXT, EMBEDDING, HELLO, Api, bearer
from tests.api.shapes import check_error

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


async def tokenize(api: Api, **fields: Any) -> Any:
    """Ask for tokens."""
    body = {"model": CHAT, **fields}
    return await api.client.post("/tokenize", headers=await api.headers(), json=body)


async def test_a_text_has_the_tokens_that_completions_would_count(api: Api) -> None:
    """With the checkpoint's own special tokens, or without."""
    answer = (await tokenize(api, prompt="The quick fox", return_token_strs=True)).json()
    expected = api.tokenizer.text.encode("The quick fox", special_tokens=True)
    assert expected == answer["tokens"]
    assert len(expected) == answer["count"] == len(answer["token_strs"])
    assert answer["max_model_len"] == CONTEXT
    plain = (await tokenize(api, prompt="The quick fox", add_special_tokens=False)).json()
    assert plain["tokens"] == api.tokenizer.text.encode("The quick fox", special_tokens=False)
    assert plain["token_strs"] is None


async def test_messages_have_the_tokens_that_a_chat_would_count(api: Api) -> None:
    """Template and tools included."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    answer = (await tokenize(api, messages=HELLO, tools=[tool])).json()
    chat = (await api.complete(await api.headers(), messages=HELLO, tools=[tool])).json()
    assert chat["usage"]["prompt_tokens"] == answer["count"]


async def test_an_embedding_models_text_is_counted_as_it_would_be_embedded(api: Api) -> None:
    """Special tokens and prompts included."""
    answer = (await tokenize(api, model=EMBEDDING, prompt="The quick fox")).json()
    embedded = (await api.embed(await api.headers(), input="The quick fox")).json()
    assert embedded["usage"]["prompt_tokens"] == answer["count"]
    again = await api.embed(await api.headers(), input=answer["tokens"])
    assert again.json()["data"] == embedded["data"]


async def test_tokens_are_written_as_their_text(api: Api) -> None:
    """Back and forth."""
    ids = api.tokenizer.text.encode("The quick fox — ☃", special_tokens=False)
    body = {"model": "gpt-4o-mini", "tokens": ids}
    response = await api.client.post("/detokenize", headers=await api.headers(), json=body)
    assert response.json() == {"prompt": "The quick fox — ☃"}
    body["tokens"] = []
    response = await api.client.post("/detokenize", headers=await api.headers(), json=body)
    assert response.json() == {"prompt": ""}


async def test_counting_costs_a_request_and_no_tokens(api: Api) -> None:
    """Of the account's tier; without credentials nothing is counted."""
    _, key = await api.key("basic")
    body = {"model": CHAT, "prompt": "x"}
    response = await api.client.post("/tokenize", headers=bearer(key), json=body)
    assert response.headers["x-ratelimit-remaining-requests"] == "59"
    assert response.headers["x-ratelimit-remaining-tokens"] == "40000"
    assert (await api.client.post("/tokenize", json=body)).status_code == 401


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, None),
        ("/tokenize", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]},
         None),
        ("/tokenize", {"messages": HELLO, "model": EMBEDDING}, "messages"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)  # fmt: skip
async def test_what_has_no_tokens_is_refused_by_name(
    api: Api, path: str, fields: dict[str, Any], param: str | None
) -> None:
    """Either a text or messages; only tokens of the vocabulary."""
    body = {"model": CHAT, **fields}
    response = await api.client.post(path, headers=await api.headers(), json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    check_error(response.json(), type="invalid_request_error", code=error["code"], param=param)
