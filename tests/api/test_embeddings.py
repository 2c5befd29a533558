from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from omai_ray.api.embeddings import check_tokens
from omai_ray.api.schemas.embeddings import MAX_INPUTS, MAX_REQUEST_TOKENS
from omai_ray.errors import InvalidRequest
from tests.api.conftest import EMBEDDING, Api, Exchange
from tests.api.shapes import check, check_error

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXTS = ["The quick brown fox", "jumps", "Hello, how are you? I am fine, thank you.", "dog"]


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that all these tests ask."""
    return shared_api


def vectors(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return an answer's numbers as rows."""
    return np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)


async def test_the_references_embedding_request_gets_the_references_answer(api: Api) -> None:
    """The body of the API reference is answered with every key that it shows."""
    body = {
        "model": "text-embedding-ada-002",
        "input": "The quick brown fox jumps over the lazy dog",
    }
    response = await api.client.post(
        "/v1/embeddings", headers=await api.headers("basic"), json=body
    )
    assert response.status_code == 200
    answer = response.json()
    check(answer, "CreateEmbeddingResponse")
    assert answer.keys() == {"object", "data", "model", "usage"}
    assert answer["model"] == "text-embedding-ada-002"
    (item,) = answer["data"]
    assert (item["object"], item["index"]) == ("embedding", 0)
    assert len(item["embedding"]) == api.embedder.dimension
    (ids,) = api.embedder.tokenize([body["input"]])
    assert answer["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}


async def test_vectors_are_the_engines_in_the_order_of_the_inputs(api: Api) -> None:
    """Many inputs of differing lengths: row by row, numbered from 0."""
    texts = [TEXTS[number % 4] + " fox" * (number % 7) for number in range(100)]
    answer = (await api.embed(await api.headers(), input=texts)).json()
    check(answer, "CreateEmbeddingResponse")
    assert [item["index"] for item in answer["data"]] == list(range(100))
    expected = [api.embedder.embed_ids(api.embedder.tokenize([text]))[0] for text in texts]
    np.testing.assert_allclose(np.array(expected), vectors(answer), atol=1e-6)


async def test_base64_holds_the_same_numbers_as_float(api: Api) -> None:
    """Little-endian float32, as the OpenAI client asks for."""
    headers = await api.headers()
    numbers = (await api.embed(headers, input=TEXTS, encoding_format="float")).json()
    encoded = (await api.embed(headers, input=TEXTS, encoding_format="base64")).json()
    rows = [
        np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in encoded["data"]
    ]
    assert (vectors(numbers) == np.array(rows)).all()


async def test_token_arrays_give_the_texts_vectors(api: Api) -> None:
    """Ids are taken as they are; a flat array is one input."""
    headers = await api.headers()
    ids = api.embedder.tokenize(TEXTS)
    texts = (await api.embed(headers, input=TEXTS)).json()
    tokens = (await api.embed(headers, input=ids)).json()
    assert texts == tokens
    one = (await api.embed(headers, input=ids[0])).json()
    np.testing.assert_allclose(vectors(texts)[0], vectors(one)[0], atol=1e-6)
    assert len(ids[0]) == one["usage"]["total_tokens"]


async def test_so_many_inputs_are_taken_and_one_more_is_refused(api: Api) -> None:
    """2,048 inputs at most."""
    headers = await api.headers()
    answer = (await api.embed(headers, input=["fox"] * MAX_INPUTS)).json()
    assert len(answer["data"]) == MAX_INPUTS
    for item in ("fox", 5, [5]):
        response = await api.embed(headers, input=[item] * (MAX_INPUTS + 1))
        assert response.status_code == 400
        check_error(
            response.json(),
            type="invalid_request_error",
            code="array_above_max_length",
            param="input",
        )
        assert "2048, but got an array with length 2049" in response.text


async def test_an_input_above_the_context_names_both_numbers(api: Api) -> None:
    """The error says which input, how many tokens it has and how many are accepted."""
    text = "fox " * 100
    (ids,) = api.embedder.tokenize([text])
    response = await api.embed(await api.headers(), input=["fox", text])
    assert response.status_code == 400
    check_error(
        response.json(),
        type="invalid_request_error",
        code="context_length_exceeded",
        param="input",
    )
    message = response.json()["error"]["message"]
    assert f"maximum context length is {api.embedder.context} tokens" in message
    assert f"{len(ids)} tokens in input[1]" in message


@pytest.mark.parametrize("fields", [{"dimensions": 8}, {"dimensions": 1}])
async def test_dimensions_are_refused_where_the_model_has_one_size(
    api: Api, fields: dict[str, Any]
) -> None:
    """In OpenAI's words."""
    response = await api.embed(await api.headers(), **fields)
    assert response.status_code == 400
    assert (
        "This model does not support specifying dimensions." == response.json()["error"]["message"]
    )
    assert response.json()["error"]["param"] == "dimensions"


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ("", "input", "string_below_min_length"),
        ([], "input", "array_below_min_length"),
        (["fox", ""], "input[1]", "string_below_min_length"),
        ([[5], []], "input[1]", "array_below_min_length"),
        (["fox", 5], "input[1]", "invalid_type"),
        ([5, "fox"], "input[1]", "invalid_type"),
        ([[5], ["fox"]], "input[1][0]", "invalid_type"),
        ([5.5], "input[0]", "invalid_type"),
        (None, "input", "invalid_type"),
        ({"a": 1}, "input", "invalid_type"),
        ([-1], "input[0]", "integer_below_min_value"),
        ([[5], [7, -1]], "input[1][1]", "integer_below_min_value"),
        ([2**31], "input[0]", "integer_above_max_value"),
        ([10**6], "input[0]", "invalid_value"),
        ([[5], [7, 10**6]], "input[1]", "invalid_value"),
    ],
)
@pytest.mark.fault(17)
async def test_an_input_that_cannot_be_is_refused_by_its_place(
    api: Api, given: Any, param: str, code: str
) -> None:
    """Empty, of the wrong type, negative, or outside the vocabulary."""
    response = await api.embed(await api.headers(), input=given)
    assert response.status_code == 400, response.text
    check_error(response.json(), type="invalid_request_error", code=code, param=param)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"truncate": True}, "truncate", "unknown_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"user": 5}, "user", "invalid_type"),
    ],
)
async def test_other_fields_are_checked_by_name(
    api: Api, fields: dict[str, Any], param: str, code: str
) -> None:
    """Unknown fields are refused too."""
    response = await api.embed(await api.headers(), **fields)
    assert response.status_code == 400
    check_error(response.json(), type="invalid_request_error", code=code, param=param)


async def test_a_request_above_the_sum_of_tokens_is_refused(api: Api) -> None:
    """300,000 tokens in one request at most, also where each input is short enough."""
    served = api.services.models.embedding(EMBEDDING)
    with pytest.raises(InvalidRequest, match=f"{MAX_REQUEST_TOKENS} tokens .* got 300024"):
        check_tokens(
            [[5] * 48] * 6250 + [[5] * 24],
            served.tokenizer.context,
            truncate=False,
            param="input",
            name=str,
        )


async def test_a_failing_model_is_a_500_without_its_text(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets the envelope and the request id."""
    monkeypatch.setattr(api.embedding, "failure", RuntimeError("canary-in-exception"))
    response = await api.embed(await api.headers())
    assert response.status_code == 500
    check_error(response.json(), type="server_error", code="internal_error", param=None)
    assert "canary-in-exception" not in response.text


async def test_a_body_in_many_pieces_is_read_whole(api: Api) -> None:
    """Chunked bodies are put together."""
    body = f'{{"model": "{EMBEDDING}", "input": "fox"}}'.encode()
    headers = await api.headers()
    exchange = Exchange(
        api.app, "/v1/embeddings", headers, *(body[at : at + 1] for at in range(len(body)))
    )
    await exchange.run()
    assert exchange.status == 200
