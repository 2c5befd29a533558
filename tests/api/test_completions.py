"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import CHAT, CONTEXT, Api, events
from tests.api.shapes import check, check_error

pytestmark = pytest.mark.asyncio(loop_scope="session")

WILD = {"temperature": 1.5, "seed": 11, "max_tokens": 20}


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


async def complete(api: Api, headers: dict[str, str], **fields: Any) -> httpx.Response:
    """Ask for a short greedy completion, unless fields say otherwise."""
    body = {"model": CHAT, "prompt": "Once upon", "temperature": 0, "max_tokens": 8, **fields}
    body = {name: value for name, value in body.items() if value is not ...}
    return await api.client.post("/v1/completions", headers=headers, json=body)


async def test_a_prompt_is_continued_as_it_is(api: Api) -> None:
    """No chat template is put around it; its tokens are counted."""
    response = await complete(api, await api.headers())
    assert response.status_code == 200
    answer = response.json()
    check(answer, "CreateCompletionResponse")
    ids = api.tokenizer.text.encode("Once upon", special_tokens=True)
    assert len(ids) == answer["usage"]["prompt_tokens"]
    by_ids = (await complete(api, await api.headers(), prompt=ids)).json()
    assert answer["choices"][0]["text"] == by_ids["choices"][0]["text"]


async def test_sixteen_tokens_are_the_default(api: Api) -> None:
    """As OpenAI has it."""
    answer = (await complete(api, await api.headers(), max_tokens=..., logit_bias={"0": 0})).json()
    assert answer["usage"]["completion_tokens"] <= 16


async def test_each_prompt_has_its_own_choices_in_order(api: Api) -> None:
    """Prompts times n, as asked one by one."""
    headers = await api.headers()
    prompts = ["Once upon", "The quick", "Hello, how"]
    both = (await complete(api, headers, prompt=prompts, n=2, **WILD)).json()
    check(both, "CreateCompletionResponse")
    assert list(range(6)) == [choice["index"] for choice in both["choices"]]
    alone = [
        (await complete(api, headers, prompt=prompt, n=2, **WILD)).json() for prompt in prompts
    ]
    texts = [choice["text"] for answer in alone for choice in answer["choices"]]
    assert texts == [choice["text"] for choice in both["choices"]]
    for count in ("prompt_tokens", "completion_tokens"):
        assert sum(answer["usage"][count] for answer in alone) == both["usage"][count]


async def test_a_stream_says_what_the_whole_says(api: Api) -> None:
    """Chunk by chunk, several prompts mixed; usage last where it is asked for."""
    headers = await api.headers()
    fields = {**WILD, "prompt": ["Once upon", "The quick"], "n": 2}
    whole = (await complete(api, headers, **fields)).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await complete(api, headers, **fields, **options)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert whole["usage"][count] == last["usage"][count]
    texts, reasons = [""] * 4, [None] * 4
    for chunk in chunks:
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        assert reasons[choice["index"]] is None
        reasons[choice["index"]] = choice["finish_reason"]
    assert [choice["text"] for choice in whole["choices"]] == texts
    assert [choice["finish_reason"] for choice in whole["choices"]] == reasons


async def test_echo_puts_the_prompt_first(api: Api) -> None:
    """Once for each choice, in a stream too, be it text or tokens."""
    headers = await api.headers()
    plain = (await complete(api, headers)).json()["choices"][0]["text"]
    whole = (await complete(api, headers, echo=True, n=2)).json()
    assert ["Once upon" + plain] * 2 == [choice["text"] for choice in whole["choices"]]
    *chunks, _ = events((await complete(api, headers, echo=True, stream=True)).text)
    assert "Once upon" + plain == "".join(chunk["choices"][0]["text"] for chunk in chunks)
    ids = api.tokenizer.text.encode("Once upon", special_tokens=False)
    by_ids = (await complete(api, headers, echo=True, prompt=ids)).json()
    assert by_ids["choices"][0]["text"].startswith("Once upon")


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_of_each_token_with_its_place_in_the_text(
    api: Api, stream: bool
) -> None:
    """OpenAI's legacy form."""
    headers = await api.headers()
    fields = {"prompt": "The quick", "logprobs": 2, "stream": stream}
    response = await complete(api, headers, **fields)
    if stream:
        *chunks, _ = events(response.text)
        choices = [chunk["choices"][0] for chunk in chunks]
    else:
        choices = response.json()["choices"]
        check(response.json(), "CreateCompletionResponse")
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    told = [choice["logprobs"] for choice in choices]
    tokens, values, top, offsets = ([x for part in told for x in part[name]] for name in names)
    assert len(tokens) == len(values) == len(top) == len(offsets) > 0
    assert offsets == [sum(map(len, tokens[:index])) for index in range(len(tokens))]
    for token, value, likeliest in zip(tokens, values, top, strict=True):
        assert value <= 0
        assert len(likeliest) <= 2
        assert likeliest[token] == pytest.approx(value)  # greedy: the likeliest was drawn


async def test_best_of_returns_the_likeliest_of_its_candidates(api: Api) -> None:
    """By mean log-probability a token; all candidates are paid for."""
    headers = await api.headers()
    all_four = (await complete(api, headers, **WILD, n=4, logprobs=0)).json()
    means = {
        choice["text"]: sum(choice["logprobs"]["token_logprobs"])
        / len(choice["logprobs"]["tokens"])
        for choice in all_four["choices"]
    }
    best = (await complete(api, headers, **WILD, n=2, best_of=4)).json()
    check(best, "CreateCompletionResponse")
    assert [0, 1] == [choice["index"] for choice in best["choices"]]
    assert sorted(means, key=lambda text: -means[text])[:2] == [
        choice["text"] for choice in best["choices"]
    ]
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert all_four["usage"]["completion_tokens"] == best["usage"]["completion_tokens"]


async def test_tokens_are_reserved_for_every_candidate(api: Api) -> None:
    """Prompts, and max_tokens for each of their candidates; what was not used comes back."""
    headers = await api.headers("basic")
    refused = await complete(api, headers, prompt=["a"] * 40, n=3, max_tokens=1000)
    assert refused.status_code == 429
    assert "Requested 120" in refused.json()["error"]["message"]
    answer = (await complete(api, headers, prompt=["a", "b"], n=2)).json()
    _, key = await api.key("basic")
    other = {"Authorization": f"Bearer {key}"}
    response = await complete(api, other)
    spent = response.json()["usage"]["total_tokens"]
    after = await complete(api, other)
    left = int(after.headers["x-ratelimit-remaining-tokens"])
    assert 40_000 - spent - (spent + 8) <= left
    assert answer["usage"]["completion_tokens"] <= 32


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"prompt": ...}, "prompt", "missing_required_parameter", "prompt"),
        ({"prompt": None}, "prompt", "invalid_type", "string"),
        ({"prompt": ""}, "prompt", "invalid_value", "no token"),
        ({"prompt": []}, "prompt", "array_below_min_length", "minimum length 1"),
        ({"prompt": ["a"] * 129}, "prompt", "array_above_max_length", "128"),
        ({"prompt": ["a"] * 100, "n": 2}, None, "invalid_value", "200"),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_type", "a string"),
        ({"prompt": [10**6]}, "prompt", "invalid_value", "vocabulary"),
        ({"prompt": [[1], [10**6]]}, "prompt[1]", "invalid_value", "vocabulary"),
        ({"prompt": [-1]}, "prompt[0]", "integer_below_min_value", ">= 0"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", ">= 1"),
        ({"max_tokens": 10**9}, "prompt", "context_length_exceeded", str(CONTEXT)),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value", "<= 5"),
        ({"best_of": 21}, "best_of", "integer_above_max_value", "<= 20"),
        ({"best_of": 1, "n": 2}, None, "invalid_value", "best_of"),
        ({"best_of": 2, "stream": True}, None, "invalid_value", "stream"),
        ({"echo": True, "logprobs": 1}, None, "invalid_value", "echo"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter", "suffix"),
        ({"n": 10**6}, "n", "integer_above_max_value", "128"),
        ({"messages": []}, "messages", "unknown_parameter", "messages"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    api: Api, fields: dict[str, Any], param: str | None, code: str, words: str
) -> None:
    """Each field has its limits, and none is ignored."""
    response = await complete(api, await api.headers(), **fields)
    assert response.status_code == 400, response.text
    check_error(response.json(), type="invalid_request_error", code=code, param=param)
    assert words in response.json()["error"]["message"]


async def test_a_control_token_is_one_here(api: Api) -> None:
    """The whole prompt is the caller's own: they may write a template by hand."""
    written = "<|im_start|>user\nHi<|im_end|>"
    assert api.tokenizer.text.encode(written, special_tokens=True) != []
    answer = (await complete(api, await api.headers(), prompt=written)).json()
    expected = len(api.tokenizer.text.encode(written, special_tokens=True))
    assert expected == answer["usage"]["prompt_tokens"]
