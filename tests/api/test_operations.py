"""Ids, models, health, and the documents."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from omai_ray.api import openapi
from omai_ray.errors import ServerError
from tests.api.conftest import CHAT, EMBEDDING, Api, Exchange
from tests.api.shapes import check

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


async def test_every_response_has_an_id_a_time_and_a_version(api: Api) -> None:
    """Successes, refusals and public pages alike; ids differ."""
    headers = await api.headers()
    responses = [
        await api.complete(headers),
        await api.complete(headers, stream=True),
        await api.complete(headers, n=0),
        await api.client.get("/healthz"),
        await api.client.get("/v1/models"),
    ]
    for response in responses:
        assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
        assert response.headers["openai-processing-ms"].isdigit()
        assert response.headers["openai-version"]
    assert len({response.headers["x-request-id"] for response in responses}) == 5


@pytest.mark.parametrize("given", ["abc", "A-1_b.2", "x" * 64])
async def test_a_safe_request_id_of_the_client_is_echoed(api: Api, given: str) -> None:
    """Letters, digits and . _ - up to 64."""
    response = await api.client.get("/healthz", headers={"x-request-id": given})
    assert given == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "given", [b"x" * 4096, b"x" * 65, b"a\nb", b"a b", b'"', b"\xff", b"", b"a\n"]
)
@pytest.mark.fault(30)
async def test_an_unsafe_request_id_is_replaced(api: Api, given: bytes) -> None:
    """Over-long, with a newline or another character: neither echoed nor in an error's body."""
    exchange = Exchange(api.app, "/v1/nothing", await api.headers())
    exchange.scope["headers"].append((b"x-request-id", given))
    await exchange.run()
    headers = dict(exchange.sent[0]["headers"])
    assert re.fullmatch(rb"req_[0-9a-f]{32}", headers[b"x-request-id"])
    assert len(given) < 20 or given not in exchange.body


async def test_models_and_aliases_are_listed_and_found(api: Api) -> None:
    """Each under its own name."""
    headers = await api.headers()
    listed = (await api.client.get("/v1/models", headers=headers)).json()
    check(listed, "ListModelsResponse")
    assert [CHAT, EMBEDDING, "gpt-4o-mini"] == [card["id"] for card in listed["data"]]
    for card in listed["data"]:
        found = (await api.client.get(f"/v1/models/{card['id']}", headers=headers)).json()
        check(found, "Model")
        assert card == found


@pytest.mark.parametrize("name", ["gpt-5", "a/b", "../x", "%2e%2e"])
async def test_an_unknown_model_is_a_404(api: Api, name: str) -> None:
    """Names with slashes are names."""
    response = await api.client.get(f"/v1/models/{name}", headers=await api.headers())
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_health_and_readiness_need_no_credentials(api: Api) -> None:
    """For load balancers."""
    assert (await api.client.get("/healthz")).json() == {"status": "ok"}
    assert (await api.client.get("/readyz")).json() == {"status": "ready"}


async def test_readiness_names_the_model_that_cannot_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, and the cause stays inside."""
    monkeypatch.setattr(api.embedding, "failure", ServerError("canary-in-exception"))
    response = await api.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"status": "loading", "models": [EMBEDDING]}


def references(node: Any) -> set[str]:
    """Return every $ref in a document."""
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


async def test_the_openapi_document_is_whole(api: Api) -> None:
    """Every reference resolves, every route answers with the envelope, nothing is a 422."""
    document = (await api.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    for reference in references(document):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    assert {"/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/models/{model}"} <= set(
        document["paths"]
    ) | {path.replace(":path", "") for path in document["paths"]}
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    operations = [op for path in document["paths"].values() for op in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for operation in operations:
        assert operation["summary"]
        assert "422" not in operation["responses"]
    for path in openapi.EXAMPLES:
        responses = document["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "415", "429", "500", "503"} <= set(responses)
        assert all("x-request-id" in response["headers"] for response in responses.values())
        assert "Retry-After" in responses["429"]["headers"]
        assert "x-ratelimit-remaining-tokens" in responses["200"]["headers"]
    assert document["paths"]["/healthz"]["get"]["security"] == []


async def test_the_documents_examples_are_served(api: Api) -> None:
    """Each request that the document shows is answered."""
    document = (await api.client.get("/openapi.json")).json()
    headers = await api.headers()
    for path in openapi.EXAMPLES:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        example = content["application/json"]["example"]
        response = await api.client.post(path, headers=headers, json=example)
        assert response.status_code == 200, (path, response.text)
        definitions = {"components": document["components"]}
        schema = document["paths"][path]["post"]["responses"]["200"]["content"]
        jsonschema.validate(
            response.json(), {**definitions, **schema["application/json"]["schema"]}
        )


async def test_the_documentation_page_needs_no_network(api: Api) -> None:
    """Every file that it loads is served here, without credentials; `/` leads to it."""
    assert "/docs" == (await api.client.get("/")).headers["location"]
    page = await api.client.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"""["'(](?:https?:)?//""", page.text)
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert (await api.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/docs/static/../x", "/docs/static/%2e%2e/%2e%2e/__init__.py", "/docs/static/x.js"]
)
async def test_other_files_are_not_public(api: Api, path: str) -> None:
    """Only the page's own files are."""
    assert (await api.client.get(path)).status_code == 401
