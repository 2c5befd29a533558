"""POST /v1/rerank and /v1/score, by an embedding model and by a reranker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from omai_ray.api.app import create_app
from omai_ray.api.backends import ServedRerank
from omai_ray.catalog import Catalog, ModelSpec
from omai_ray.engines.embedding.batcher import EmbeddingBatcher
from omai_ray.engines.embedding.rerank import RerankEngine
from tests.api.conftest import CHAT, EMBEDDING, Api, EngineEmbedding
from tests.api.shapes import check_error
from tests.checkpoints import save_rerank_checkpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

DOCUMENTS = ["The lazy dog", "The quick brown fox jumps", "Hello there", "A quick fox"]


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


async def cosines(api: Api, headers: dict[str, str], first: str, texts: list[str]) -> list[float]:
    """Return the cosines of a text and others, by /v1/embeddings."""
    answer = (await api.embed(headers, input=[first, *texts])).json()
    rows = np.array([item["embedding"] for item in answer["data"]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [float(value) for value in rows[1:] @ rows[0]]


async def rerank(api: Api, headers: dict[str, str], **fields: Any) -> Any:
    """Ask for a ranking."""
    body = {"model": EMBEDDING, "query": "quick fox", "documents": DOCUMENTS, **fields}
    return await api.client.post("/v1/rerank", headers=headers, json=body)


async def score(api: Api, headers: dict[str, str], **fields: Any) -> Any:
    """Ask for scores."""
    body = {"model": EMBEDDING, "text_1": "quick fox", "text_2": DOCUMENTS, **fields}
    return await api.client.post("/v1/score", headers=headers, json=body)


async def test_documents_come_best_first_with_their_cosines(api: Api) -> None:
    """Each with its place in the request; the tokens are those of all texts."""
    headers = await api.headers()
    expected = await cosines(api, headers, "quick fox", DOCUMENTS)
    response = await rerank(api, headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -expected[index])
    assert order == [result["index"] for result in answer["results"]]
    for result in answer["results"]:
        assert expected[result["index"]] == pytest.approx(result["relevance_score"], abs=1e-5)
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    embedded = (await api.embed(headers, input=["quick fox", *DOCUMENTS])).json()
    assert embedded["usage"] == answer["usage"]
    assert answer["model"] == EMBEDDING


async def test_top_n_and_return_documents_shorten_the_answer(api: Api) -> None:
    """The best n, without their texts."""
    headers = await api.headers()
    whole = (await rerank(api, headers)).json()["results"]
    short = (await rerank(api, headers, top_n=2, return_documents=False)).json()["results"]
    assert [result["index"] for result in whole[:2]] == [result["index"] for result in short]
    assert all("document" not in result for result in short)
    assert len((await rerank(api, headers, top_n=99)).json()["results"]) == len(DOCUMENTS)


async def test_scores_are_in_the_order_of_the_request(api: Api) -> None:
    """One text with each of several, and lists pair by pair."""
    headers = await api.headers()
    expected = await cosines(api, headers, "quick fox", DOCUMENTS)
    answer = (await score(api, headers)).json()
    assert list(range(4)) == [entry["index"] for entry in answer["data"]]
    assert expected == pytest.approx([entry["score"] for entry in answer["data"]], abs=1e-5)
    paired = (await score(api, headers, text_1=["quick fox"] * 4)).json()
    assert expected == pytest.approx([entry["score"] for entry in paired["data"]], abs=1e-5)
    single = (await score(api, headers, text_2=DOCUMENTS[1])).json()
    assert expected[1:2] == pytest.approx([entry["score"] for entry in single["data"]], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("rerank", {"query": ""}, 400, "query"),
        ("rerank", {"documents": []}, 400, "documents"),
        ("rerank", {"documents": ["a", ""]}, 400, "documents[1]"),
        ("rerank", {"documents": ["a"] * 2048}, 400, "documents"),
        ("rerank", {"documents": [{"text": "a"}]}, 400, "documents[0]"),
        ("rerank", {"documents": ["a " * 500]}, 400, "documents"),
        ("rerank", {"top_n": 0}, 400, "top_n"),
        ("rerank", {"max_chunks_per_doc": 3}, 400, "max_chunks_per_doc"),
        ("rerank", {"model": CHAT}, 404, "model"),
        ("rerank", {"model": "x"}, 404, "model"),
        ("score", {"text_1": ["a", "b"]}, 400, None),
        ("score", {"text_2": ""}, 400, "text_2"),
        ("score", {"text_1": None}, 400, "text_1"),
    ],
)
async def test_what_cannot_be_scored_is_refused_by_name(
    api: Api, path: str, fields: dict[str, Any], status: int, param: str | None
) -> None:
    """Limits, unknown fields, and models that do something else."""
    ask = rerank if path == "rerank" else score
    response = await ask(api, await api.headers(), **fields)
    assert status == response.status_code, response.text
    error = response.json()["error"]
    check_error(response.json(), type="invalid_request_error", code=error["code"], param=param)


async def test_scoring_costs_tokens_of_the_tier(api: Api) -> None:
    """As embedding the same texts does."""
    _, key = await api.key("basic")
    response = await rerank(api, {"Authorization": f"Bearer {key}"})
    spent = response.json()["usage"]["total_tokens"]
    assert 40_000 - spent == int(response.headers["x-ratelimit-remaining-tokens"])


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, RerankEngine]:
    """Return a small random cross-encoder, loaded."""
    directory = save_rerank_checkpoint(tmp_path_factory.mktemp("reranker"))
    spec = ModelSpec(name="reranker", task="rerank", source=str(directory), dtype="float32")
    return spec, RerankEngine(spec)


@pytest.fixture
async def client(
    api: Api, reranker: tuple[ModelSpec, RerankEngine]
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an application that serves the cross-encoder too."""
    spec, engine = reranker
    models = api.services.models
    catalog = Catalog((*models.catalog.models.values(), spec), {})
    backend = EngineEmbedding(EmbeddingBatcher(engine, max_queued=8))
    served = ServedRerank(spec, engine.tokenizer, backend, 3)
    models = replace(models, catalog=catalog, reranks={"reranker": served})
    app = create_app(replace(api.services, models=models))
    transport = httpx.ASGITransport(app=app)
    headers = await api.headers()
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as it:
        yield it


async def test_a_reranker_reads_each_pair(
    client: httpx.AsyncClient, reranker: tuple[ModelSpec, RerankEngine]
) -> None:
    """Ranked by its own scores; each pair's tokens are counted."""
    tokenizer = reranker[1].tokenizer
    inputs = tokenizer.encode_pairs("quick fox", DOCUMENTS)
    expected = reranker[1].embed_ids(inputs)[:, 0]
    body = {"model": "reranker", "query": "quick fox", "documents": DOCUMENTS}
    answer = (await client.post("/v1/rerank", json=body)).json()
    assert np.argsort(-expected).tolist() == [result["index"] for result in answer["results"]]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert sorted(expected.tolist(), reverse=True) == pytest.approx(scores, abs=1e-6)
    assert sum(map(len, inputs)) == answer["usage"]["total_tokens"]


async def test_a_reranker_scores_pairs(client: httpx.AsyncClient) -> None:
    """One with each of several is the same as pair by pair."""
    body = {"model": "reranker", "text_1": "quick fox", "text_2": DOCUMENTS}
    several = (await client.post("/v1/score", json=body)).json()
    paired = (await client.post("/v1/score", json={**body, "text_1": ["quick fox"] * 4})).json()
    first, second = ([entry["score"] for entry in answer["data"]] for answer in (several, paired))
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_a_reranker_does_nothing_else(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    """404, as for a model that is not there; it is listed, and its tokens can be counted."""
    response = await client.post(path, json={"model": "reranker", **fields})
    assert response.status_code == 404
    listed = (await client.get("/v1/models")).json()["data"]
    assert "reranker" in [card["id"] for card in listed]
    counted = await client.post("/tokenize", json={"model": "reranker", "prompt": "quick fox"})
    assert counted.json()["count"] > 0


async def test_a_pair_that_is_too_long_is_refused_with_its_name(
    client: httpx.AsyncClient,
) -> None:
    """And the limit."""
    body = {"model": "reranker", "query": "fox", "documents": ["fox", "fox " * 2000]}
    response = await client.post("/v1/rerank", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "documents[1] with" in response.json()["error"]["message"]
    assert "documents" == response.json()["error"]["param"]
    body = {"model": "reranker", "text_1": "fox", "text_2": "fox " * 2000}
    error = (await client.post("/v1/score", json=body)).json()["error"]
    assert ("text_2", True) == (error["param"], "tokens in text_2 with" in error["message"])


async def test_a_query_is_counted_for_every_document_before_it_is_copied(
    client: httpx.AsyncClient,
) -> None:
    """Few bytes could otherwise become gigabytes of tokens."""
    body = {"model": "reranker", "query": "a " * 3000, "documents": ["a"] * 1000}
    response = await client.post("/v1/rerank", json=body)
    assert response.status_code == 400
    assert "alone has" in response.json()["error"]["message"]
    body = {"model": "reranker", "query": "fox " * 40, "documents": ["a"] * 2000}
    assert (await client.post("/v1/rerank", json=body)).status_code in (200, 400)


async def test_texts_of_both_lists_are_counted(api: Api) -> None:
    """At most 2,048 in all."""
    fields = {"text_1": ["a"] * 1500, "text_2": ["a"] * 1500}
    response = await score(api, await api.headers(), **fields)
    assert response.status_code == 400
    assert "2048" in response.json()["error"]["message"]
