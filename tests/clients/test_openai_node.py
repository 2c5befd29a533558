"""OpenAI's client for Node, of the JavaScript SDK's own dependencies, against a running server."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Live
from tests.clients.environments import require_package, run_node


@pytest.mark.parametrize("package", ["openai", "openai-oldest", "openai-newest"])
def test_openai_for_node(live: Live, package: str) -> None:
    """Chat, streams, the tool runner, schemas, vectors, responses, models, files, error classes."""
    require_package(package)
    outcome = run_node(live, "openai_node.mjs", package)
    chat = outcome["chat"]
    assert chat["text"]
    assert chat["text"] == chat["streamed"] == chat["helper"]
    assert chat["tokens"][0] == chat["tokens"][1]
    assert outcome["tools"]["results"] == ["fine", "fine"]
    assert len(outcome["tools"]["cities"]) == 2
    assert set(outcome["tools"]["cities"]) <= {"Rome", "Oslo"}
    assert outcome["structured"]["city"] in ("Rome", "Oslo")
    base64, numbers = outcome["vectors"]
    assert pytest.approx(numbers, abs=1e-6) == base64
    assert outcome["responses"]["text"] == outcome["responses"]["streamed"]
    assert outcome["responses"]["last"] in ("response.completed", "response.incomplete")
    assert ["omai-gpt-4", "text-embedding-ada-002", "gpt-4o-mini"] == outcome["models"]
    files = outcome["files"]
    made = files["made"]
    assert (made["filename"], made["bytes"]) == ("größe.jsonl", 19)
    assert made["expires_at"] == made["created_at"] + 3600
    assert made == files["again"]
    assert made["id"] in files["listed"]
    assert (files["content"], files["deleted"]) == ('{"custom_id": "a"}\n', True)
    failures = outcome["failures"]
    assert {"BadRequestError", "NotFoundError", "AuthenticationError"} == failures.keys()
    assert all(found["raised"] for found in failures.values())
    assert all(found["requestID"].startswith("req_") for found in failures.values())
    bad = failures["BadRequestError"]
    assert (bad["param"], bad["code"]) == ("temperature", "decimal_above_max_value")
