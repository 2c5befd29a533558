"""Frameworks that speak OpenAI's API, each in a program of its own, against a running server.

They need other versions of their libraries than the server does: `make clients-setup` puts them
into an environment of their own. The model writes gibberish: held are form, counts and names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clients.conftest import Live
from tests.clients.environments import PROGRAMS, run_client

CITIES = ("Rome", "Oslo")


def told(live: Live, home: Path, program: str, *arguments: str) -> dict[str, Any]:
    """Run a program and return what it tells."""
    printed = run_client(live, home, "python", PROGRAMS / f"{program}.py", *arguments)
    outcome: dict[str, Any] = json.loads(printed)
    return outcome


def is_weather(value: Any) -> bool:
    """Whether a value is of the form that was asked for."""
    return value.keys() == {"city", "hot"} and value["city"] in CITIES and value["hot"] in (0, 1)


def check_vectors(vectors: list[list[float]], query: list[float]) -> None:
    """Fail where vectors are not of unit length, or the first is not that of its text alone."""
    assert len(vectors) == 3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(vectors[0], query, atol=1e-4)


def test_langchain(live: Live, tmp_path: Path) -> None:
    """ChatOpenAI and OpenAIEmbeddings."""
    outcome = told(live, tmp_path, "with_langchain")
    assert outcome["text"] == outcome["streamed_text"]
    assert outcome["finish_reason"] in ("stop", "length")
    for usage in (outcome["usage"], outcome["streamed_usage"]):
        assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    assert outcome["usage"]["total_tokens"] == outcome["streamed_usage"]["total_tokens"]
    for call in (outcome["call"], outcome["streamed_call"]):
        assert call["name"] == "Weather"
        assert call["id"].startswith("call_")
        assert is_weather(call["args"])
    assert all(map(is_weather, outcome["structured"]))
    check_vectors(outcome["vectors"], outcome["query"])


def test_llama_index(live: Live, tmp_path: Path) -> None:
    """OpenAILike and OpenAILikeEmbedding."""
    outcome = told(live, tmp_path, "with_llama_index")
    assert outcome["text"] == outcome["streamed_text"]
    assert outcome["completed"]
    usage = outcome["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert is_weather(outcome["called"])
    check_vectors(outcome["vectors"], outcome["query"])


def test_instructor(live: Live, tmp_path: Path) -> None:
    """By schema and by tool; a partial object ends as a whole one."""
    outcome = told(live, tmp_path, "with_instructor")
    reasons = {mode: found["finish_reason"] for mode, found in outcome["found"].items()}
    expected = {"JSON_SCHEMA": "stop", "TOOLS": "tool_calls", "TOOLS_STRICT": "tool_calls"}
    assert expected == reasons
    assert all(is_weather(found["weather"]) for found in outcome["found"].values())
    assert is_weather(outcome["last"])


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_pydantic_ai(live: Live, tmp_path: Path, api: str) -> None:
    """Its agents over both APIs: text, a stream, outputs by schema and by tool."""
    outcome = told(live, tmp_path, "with_pydantic_ai", api)
    assert outcome["text"]
    assert outcome["streamed_text"]
    assert all(count > 0 for count in outcome["tokens"])
    assert all(map(is_weather, outcome["structured"]))


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_openai_agents(live: Live, tmp_path: Path, api: str) -> None:
    """OpenAI's Agents SDK over both APIs: a typed output, and a tool of a nested model."""
    outcome = told(live, tmp_path, "with_openai_agents", api)
    assert is_weather(outcome["structured"])
    assert [outcome["whole"], outcome["streamed"]] == ["fine", "fine"]
    assert len(outcome["cities"]) == 2
    assert set(outcome["cities"]) <= set(CITIES)
    assert "raw_response_event" in outcome["kinds"]


def test_litellm(live: Live, tmp_path: Path) -> None:
    """As a client; failures get the classes that its users catch."""
    outcome = told(live, tmp_path, "with_litellm")
    assert outcome["text"] == outcome["streamed_text"]
    assert outcome["tokens"] == outcome["streamed_tokens"]
    assert outcome["finish_reason"] == "tool_calls"
    assert is_weather(json.loads(outcome["arguments"]))
    assert is_weather(json.loads(outcome["structured"]))
    check_vectors(outcome["vectors"], outcome["vectors"][0])
    expected = {
        "invalid": "BadRequestError",
        "absent": "NotFoundError",
        "unknown": "AuthenticationError",
        "long": "ContextWindowExceededError",
    }
    assert expected == outcome["errors"]


def test_haystack(live: Live, tmp_path: Path) -> None:
    """A chat generator, and embedders of documents and of queries."""
    outcome = told(live, tmp_path, "with_haystack")
    assert outcome["text"] == outcome["streamed_text"] == outcome["parts"]
    assert outcome["finish_reason"] in ("stop", "length")
    assert outcome["usage"]["total_tokens"] > 12
    assert outcome["call"]["name"] == "weather"
    assert is_weather(outcome["call"]["arguments"])
    check_vectors(outcome["vectors"], outcome["query"])


def test_llm_command(live: Live, tmp_path: Path) -> None:
    """Simon Willison's `llm`: prompts streamed and whole, a schema, a chat that goes on."""
    models = [
        {
            "model_id": "omai",
            "model_name": "omai-gpt-4",
            "api_base": live.base_url,
            "api_key_name": "omai",
            "supports_schema": True,
            "can_stream": True,
        }
    ]
    config = tmp_path / ".config" / "io.datasette.llm"
    config.mkdir(parents=True)
    (config / "extra-openai-models.yaml").write_text(json.dumps(models), encoding="utf-8")
    (config / "keys.json").write_text(json.dumps({"omai": live.key}), encoding="utf-8")
    short = ("-m", "omai", "-o", "max_tokens", "12", "-o", "temperature", "0")
    assert run_client(live, tmp_path, "llm", *short, "Hello").strip()
    assert run_client(live, tmp_path, "llm", *short, "--no-stream", "Hello").strip()
    assert run_client(live, tmp_path, "llm", *short, "--continue", "And you?").strip()
    weather = {
        "type": "object",
        "properties": {"city": {"enum": CITIES}, "hot": {"type": "boolean"}},
        "required": ["city", "hot"],
        "additionalProperties": False,
    }
    answer = run_client(
        live, tmp_path, "llm", "-m", "omai", "--schema", json.dumps(weather), "Hello"
    )
    assert is_weather(json.loads(answer))
    (logged,) = json.loads(run_client(live, tmp_path, "llm", "logs", "--count", "1", "--json"))
    assert logged["input_tokens"] > 0
    assert logged["output_tokens"] > 0
