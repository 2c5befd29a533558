"""What lies before the routes: methods, headers, other origins, compression."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from omai_ray.api.app import create_app
from omai_ray.api.vectors import embeddings_json
from tests.api.conftest import EMBEDDING, Api, Exchange
from tests.api.shapes import check_error

pytestmark = pytest.mark.asyncio(loop_scope="session")

ORIGIN = {"Origin": "https://app.example"}
PREFLIGHT = {
    **ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


async def test_a_page_of_another_origin_may_ask_without_credentials_first(api: Api) -> None:
    """A preflight names methods and headers, and never `*` with credentials."""
    response = await api.client.options("/v1/chat/completions", headers=PREFLIGHT)
    assert response.status_code == 200
    headers = response.headers
    assert headers["access-control-allow-origin"] == "*"
    assert "POST" in headers["access-control-allow-methods"]
    assert "x-stainless-os" in headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("status", [200, 400, 401, 404])
async def test_such_a_page_may_read_every_answer(api: Api, status: int) -> None:
    """Errors too, and the headers that tell of limits."""
    sent = ORIGIN | (await api.headers("basic") if status != 401 else {})
    path = "/v1/nothing" if status == 404 else "/v1/embeddings"
    body = {"model": EMBEDDING, "input": "x" if status == 200 else ""}
    response = await api.client.post(path, headers=sent, json=body)
    assert status == response.status_code
    assert response.headers["access-control-allow-origin"] == "*"
    exposed = response.headers["access-control-expose-headers"]
    for name in ("x-request-id", "x-ratelimit-remaining-tokens", "retry-after"):
        assert name in exposed


@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/readyz", "/openapi.json"])
async def test_head_is_get_without_a_body(api: Api, path: str) -> None:
    """The same headers, credentials needed as for GET."""
    headers = await api.headers()
    got = await api.client.get(path, headers=headers)
    response = await api.client.head(path, headers=headers)
    assert response.status_code == 200
    assert response.content == b""
    assert got.headers["content-length"] == response.headers["content-length"]
    if path == "/v1/models":
        assert (await api.client.head(path)).status_code == 401


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/chat/completions", "OPTIONS, POST"),
        ("/v1/admin/accounts", "GET, HEAD, OPTIONS, POST"),
    ],
)
async def test_options_and_405_name_the_methods(api: Api, path: str, allowed: str) -> None:
    """All of them, however many routes a path has."""
    response = await api.client.options(path)
    assert response.status_code == 204
    assert allowed == response.headers["allow"]
    refused = await api.client.request("TRACE", path, headers=await api.headers())
    assert refused.status_code == 405
    assert allowed == refused.headers["allow"]
    code = "method_not_allowed"
    check_error(refused.json(), type="invalid_request_error", code=code, param=None)


async def test_options_of_nothing_is_a_404(api: Api) -> None:
    """In the envelope."""
    response = await api.client.options("/v1/nothing")
    assert response.status_code == 404
    check_error(response.json(), type="invalid_request_error", code="unknown_url", param=None)


@pytest.mark.parametrize(
    "extra",
    [
        [(b"x-many", b"1")] * 129,
        [(b"x-long", b"a" * 33_000)],
        [(b"x-%d" % number, b"a" * 1000) for number in range(40)],
        [(b"a" * 33_000, b"")],
    ],
)
async def test_too_many_or_too_long_headers_are_refused(
    api: Api, extra: list[tuple[bytes, bytes]]
) -> None:
    """With 431, before anything is read; nothing of them is repeated."""
    exchange = Exchange(api.app, "/v1/models", await api.headers())
    exchange.scope["method"] = "GET"
    exchange.scope["headers"] += extra
    await exchange.run()
    assert exchange.status == 431
    code = "headers_too_large"
    check_error(json.loads(exchange.body), type="invalid_request_error", code=code, param=None)
    assert len(exchange.body) < 500


async def large(api: Api, accept: str | None, encoding: str) -> httpx.Response:
    """Embed 1,500 texts, and return the response as it was sent."""
    headers = await api.headers() | ({"Accept-Encoding": accept} if accept is not None else {})
    body = {"model": EMBEDDING, "input": ["fox"] * 1500, "encoding_format": encoding}
    exchange = Exchange(
        api.app,
        "/v1/embeddings",
        {**headers, "content-type": "application/json"},
        json.dumps(body).encode(),
    )
    await exchange.run()
    return httpx.Response(
        exchange.status,
        headers=exchange.sent[0]["headers"],
        stream=httpx.ByteStream(exchange.body),
    )


@pytest.mark.parametrize("accept", ["gzip", "gzip, deflate, br", "deflate, GZIP;q=0.5"])
async def test_a_large_answer_is_compressed_where_the_client_takes_it(
    api: Api, accept: str
) -> None:
    """And says so; it is shorter then."""
    plain = await large(api, None, "float")
    packed = await large(api, accept, "float")
    assert packed.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in packed.headers["vary"].lower()
    raw = b"".join(packed.iter_raw())
    assert int(packed.headers["content-length"]) == len(raw)
    assert len(raw) < 0.7 * len(plain.read())
    assert json.loads(gzip.decompress(raw)) == plain.json()


@pytest.mark.parametrize("accept", [None, "", "identity", "br", "gzip;q=0", "gzip; q=0.000"])
async def test_other_answers_are_sent_as_they_are(api: Api, accept: str | None) -> None:
    """Small ones always, and base64, which hardly shrinks."""
    response = await large(api, accept, "float")
    assert "content-encoding" not in response.headers
    assert "content-encoding" not in (await large(api, "gzip", "base64")).headers
    small = await api.embed(await api.headers() | {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers


@pytest.mark.parametrize("as_base64", [False, True])
@pytest.mark.parametrize("count", [1, 2, 10, 11, 1001])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 384])
async def test_vectors_are_written_exactly(count: int, width: int, as_base64: bool) -> None:
    """Whatever their number and width: base64 has padding for two widths of three."""
    generator = np.random.default_rng(count * width)
    vectors = generator.standard_normal((count, width)).astype(np.float32)
    answer: Any = orjson.loads(embeddings_json(vectors, "m", 7, as_base64=as_base64))
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert (answer["object"], answer["model"]) == ("list", "m")
    assert list(range(count)) == [entry["index"] for entry in answer["data"]]
    for entry, vector in zip(answer["data"], vectors, strict=True):
        assert entry.keys() == {"object", "index", "embedding"}
        if as_base64:
            assert entry["embedding"] == base64.b64encode(vector.tobytes()).decode()
        else:
            assert np.array_equal(np.float32(entry["embedding"]), vector)


@pytest.mark.parametrize(
    ("cors", "trusted", "credentials"),
    [
        (("https://app.example",), (), False),
        (("https://app.example",), ("https://app.example",), True),
        (("https://app.example", "https://b.example"), ("https://app.example",), False),
    ],
)
async def test_pages_use_sessions_where_they_are_trusted_with_them(
    api: Api, cors: tuple[str, ...], trusted: tuple[str, ...], credentials: bool
) -> None:
    """Listed for both; others are refused in the envelope."""
    ingress = api.services.ingress.model_copy(update={"cors_origins": cors})
    sessions = api.services.sessions.model_copy(update={"origins": trusted})
    app = create_app(replace(api.services, ingress=ingress, sessions=sessions))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.options("/v1/models", headers=PREFLIGHT)
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert credentials == ("access-control-allow-credentials" in response.headers)
        evil = {**PREFLIGHT, "Origin": "https://evil.example"}
        refused = await client.options("/v1/models", headers=evil)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    code = "permission_denied"
    check_error(refused.json(), type="permission_denied", code=code, param=None)
