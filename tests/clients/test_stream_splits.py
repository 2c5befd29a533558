"""Streams cut anywhere on their way: clients read the same events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.api.conftest import CHAT
from tests.clients.conftest import Live
from tests.clients.environments import require_package, run_node
from tests.clients.splitting import SplittingProxy, splitting

CUTS = ("bytes", *map(str, range(6)))
HELLO = [{"role": "user", "content": "Hello"}]
# Hot and seeded, so that characters of several bytes are among what the random model writes.
WILD = {"model": CHAT, "stream": True, "temperature": 1.5}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Tōkyō", "São Paulo", "北京"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": CITY}}
ASKED: dict[str, dict[str, Any]] = {
    "text": {
        "api": "chat",
        "body": WILD
        | {
            "messages": HELLO,
            "seed": 11,
            "n": 2,
            "max_tokens": 40,
            "logprobs": True,
            "top_logprobs": 2,
            "stream_options": {"include_usage": True},
        },
    },
    "tools": {
        "api": "chat",
        "body": WILD
        | {"messages": HELLO, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
        | {"parallel_tool_calls": False},
    },
    "responses": {"api": "responses", "body": WILD | {"input": "Hello", "max_output_tokens": 40}},
}


@pytest.fixture(scope="module")
def proxy(live: Live) -> Iterator[SplittingProxy]:
    """Run the proxy in front of the server."""
    with splitting(live.url.removeprefix("http://")) as proxy:
        yield proxy


def events(base_url: str, key: str, api: str, body: dict[str, Any]) -> list[Any]:
    """Return the events that OpenAI's client reads."""
    with OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        apis: dict[str, Any] = {"chat": client.chat.completions, "responses": client.responses}
        with apis[api].create(**body) as stream:
            return [event.model_dump() for event in stream]


@pytest.mark.parametrize("name", ASKED)
def test_openai_reads_the_same_events_wherever_a_stream_is_cut(
    live: Live, proxy: SplittingProxy, name: str
) -> None:
    """At every byte, and at random places."""
    whole = events(proxy.base_url("whole"), live.key, **ASKED[name])
    assert len(whole) > 2
    for cut in CUTS:
        assert whole == events(proxy.base_url(cut), live.key, **ASKED[name]), cut


@pytest.mark.parametrize("name", ASKED)
def test_openai_for_node_reads_the_same_events_wherever_a_stream_is_cut(
    live: Live, proxy: SplittingProxy, name: str
) -> None:
    """As the client for Python does."""
    require_package("openai")
    urls = [proxy.base_url(cut) for cut in ("whole", *CUTS)]
    whole, *others = run_node(live, "stream_node.mjs", json.dumps(ASKED[name]), *urls)
    assert len(whole) > 2
    for cut, other in zip(CUTS, others, strict=True):
        assert whole == other, cut


def test_a_line_of_a_stream_is_one_to_every_client(live: Live) -> None:
    """Unicode has more line ends than SSE, and httpx, as many clients use it, goes by those."""
    prompt = "a\u2028b\u2029c\x85d"
    body = {"model": CHAT, "prompt": prompt, "echo": True, "max_tokens": 1, "stream": True}
    headers = {"Authorization": f"Bearer {live.key}"}
    with httpx.stream("POST", f"{live.base_url}/completions", headers=headers, json=body) as stream:
        *lines, done = [line for line in stream.iter_lines() if line]
    assert done == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text.startswith(prompt)
