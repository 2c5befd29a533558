"""/v1/batches, and its lines answered by the endpoints that answer online."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from omai_ray.api.accounting import Accountant
from omai_ray.api.in_process import InProcessApi
from omai_ray.api.measures import Measures
from omai_ray.batches.answering import Answered, LineRequest, UnitWorker
from omai_ray.batches.driver import Driver, Rules
from omai_ray.batches.driving import LEASE_S
from omai_ray.batches.queue import BatchQueue
from omai_ray.catalog import Catalog, Price
from omai_ray.identity.directory import Directory
from omai_ray.ledger import UsageRecord
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.quota.gate import Gate
from omai_ray.settings import Tier
from omai_ray.store import Batch, BatchUnit
from omai_ray.telemetry.recorder import Recorder
from tests.api.conftest import CHAT, EMBEDDING, MAX_BODY_BYTES, Api, Headers, chat_body
from tests.api.shapes import check

pytestmark = pytest.mark.asyncio(loop_scope="session")
MISSING = "batch_" + "0" * 31
FREE = Tier(requests_per_minute=None, tokens_per_minute=None)


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that tests share."""
    return shared_api


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return a line of an input."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


async def upload(api: Api, headers: Headers, lines: Sequence[Any], purpose: str = "batch") -> str:
    """Upload an input; return the file's id."""
    content = "".join(json.dumps(each) + "\n" for each in lines).encode()
    answer = await api.client.post(
        "/v1/files",
        headers=headers,
        files={"file": ("input.jsonl", content)},
        data={"purpose": purpose},
    )
    assert 200 == answer.status_code, answer.text
    return str(answer.json()["id"])


async def create(api: Api, headers: Headers, **fields: Any) -> httpx.Response:
    """Create a batch of chat completions, unless fields say otherwise; ... leaves one out."""
    body = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}
    body = {name: value for name, value in body.items() if value is not ...}
    return await api.client.post("/v1/batches", headers=headers, json=body)


class InTurn:
    """An executor in this process: one unit after the other, each of them twice."""

    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker

    async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
        for unit in units:
            assert await self._worker.do(unit)
            assert not await self._worker.do(unit)  # as after a death between the two


async def run_batches(api: Api) -> None:
    """Take all batches to their ends, by this application's models."""
    services, store = api.services, api.admin.accounts._registry.store
    queue = BatchQueue(store, services.files, api.wall)
    gate = Gate(
        api.buckets,
        dict.fromkeys(services.tiers, FREE),
        MonthlyBudgets(services.ledger.tokens_in_month),
    )
    accountant = Accountant(gate, services.ledger, Measures(Recorder()))
    answers = InProcessApi(services.models, accountant)
    directory = Directory(store)
    worker = UnitWorker(
        queue, services.files.contents, answers, directory.owner, 16, clock=api.wall
    )
    models = services.models
    catalog = Catalog(tuple(served.spec for served in models.all()), models.catalog.aliases)
    driver = Driver(
        queue,
        services.files.contents,
        InTurn(worker),
        directory.owner,
        Rules(catalog, services.tiers, MAX_BODY_BYTES),
        max_running=2,
        clock=api.wall,
    )
    claimed = await queue.claim(driver.holder, LEASE_S)
    await asyncio.gather(*(driver.drive(batch) for batch in claimed))


async def retrieve(api: Api, headers: Headers, batch: str) -> dict[str, Any]:
    """Return a batch as it is now."""
    answer = await api.client.get(f"/v1/batches/{batch}", headers=headers)
    assert 200 == answer.status_code
    found: dict[str, Any] = answer.json()
    return found


async def read_lines(api: Api, headers: Headers, file: str) -> dict[str, Any]:
    """Return a file's lines by their custom_ids."""
    answer = await api.client.get(f"/v1/files/{file}/content", headers=headers)
    lines = [json.loads(text) for text in answer.text.splitlines()]
    found = {each["custom_id"]: each for each in lines}
    assert len(lines) == len(found)
    return found


def lasting(body: dict[str, Any]) -> dict[str, Any]:
    """Return a response's body without what differs each time."""
    return {name: value for name, value in body.items() if name not in ("id", "created")}


async def test_a_batch_is_created_and_retrieved_in_openais_form(
    api: Api, owner: tuple[str, Headers]
) -> None:
    """All fields are there from the first on; the input's file is in use until the end."""
    _, headers = owner
    file = await upload(api, headers, [line("a", "/v1/chat/completions", chat_body())])
    answer = await create(
        api,
        headers,
        input_file_id=file,
        metadata={"job": "nightly"},
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert 200 == answer.status_code, answer.text
    batch = answer.json()
    now = int(api.wall())
    assert {
        "id": batch["id"],
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "model": None,
        "errors": None,
        "input_file_id": file,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "in_progress_at": None,
        "expires_at": now + 86_400,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "metadata": {"job": "nightly"},
    } == batch
    assert batch == await retrieve(api, headers, batch["id"])
    listed = (await api.client.get("/v1/batches", headers=headers)).json()
    assert ("list", [batch], False) == (listed["object"], listed["data"], listed["has_more"])
    in_use = await api.client.delete(f"/v1/files/{file}", headers=headers)
    refused(in_use, 400, code="file_in_use")
    cancelled = await api.client.post(f"/v1/batches/{batch['id']}/cancel", headers=headers)
    assert "cancelling" == cancelled.json()["status"]
    await run_batches(api)
    assert "cancelled" == (await retrieve(api, headers, batch["id"]))["status"]
    again = await api.client.post(f"/v1/batches/{batch['id']}/cancel", headers=headers)
    refused(again, 400, code="batch_not_cancellable")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/rerank"}, "endpoint"),
        ({"endpoint": ...}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"completion_window": ...}, "completion_window"),
        ({"input_file_id": ...}, "input_file_id"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
         "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}},
         "output_expires_after.anchor"),
        ({"priority": "high"}, "priority"),
    ],
)  # fmt: skip
async def test_a_field_that_cannot_be_is_refused_by_name(
    api: Api, owner: tuple[str, Headers], fields: dict[str, Any], param: str
) -> None:
    """Before anything is made."""
    answer = await create(api, owner[1], **{"input_file_id": "file-" + "0" * 31, **fields})
    refused(answer, 400, param=param)


@pytest.mark.fault(21)
async def test_the_input_must_be_the_callers_own_and_for_a_batch(
    api: Api, owner: tuple[str, Headers]
) -> None:
    """Another purpose is refused; what is another's is not there."""
    _, headers = owner
    lines = [line("a", "/v1/chat/completions", chat_body())]
    other_purpose = await upload(api, headers, lines, "user_data")
    answer = await create(api, headers, input_file_id=other_purpose)
    refused(answer, 400)
    assert "input_file_id" == answer.json()["error"]["param"]
    assert (
        200 == (await api.client.delete(f"/v1/files/{other_purpose}", headers=headers)).status_code
    )
    theirs = await upload(api, await api.headers(), lines)
    refused(await create(api, headers, input_file_id=theirs), 404)
    batch = (await create(api, await api.headers(), input_file_id=theirs)).json()["id"]
    for name in (batch, MISSING, "batch_x", "nonsense"):
        refused(await api.client.get(f"/v1/batches/{name}", headers=headers), 404)
        refused(await api.client.post(f"/v1/batches/{name}/cancel", headers=headers), 404)
    await api.client.post(f"/v1/batches/{batch}/cancel", headers=await api.headers())
    await run_batches(api)


async def test_a_line_is_answered_as_a_request_is(api: Api, owner: tuple[str, Headers]) -> None:
    """The same body, and the same error; what fails is in the error file, and costs nothing."""
    account, headers = owner
    good, bad = chat_body(seed=3), chat_body(temperature=9)
    await api.complete(headers, seed=3)
    online = await api.complete(headers, seed=3)  # what is cached by then is so for the batch too
    wrong = await api.complete(headers, temperature=9)
    before = len(await usage_of(api, account))
    url = "/v1/chat/completions"
    file = await upload(api, headers, [line("good", url, good), line("bad", url, bad)])
    batch = (await create(api, headers, input_file_id=file)).json()["id"]
    await run_batches(api)
    ended = await retrieve(api, headers, batch)
    assert "completed" == ended["status"]
    assert {"total": 2, "completed": 1, "failed": 1} == ended["request_counts"]
    assert CHAT == ended["model"]
    output = await read_lines(api, headers, ended["output_file_id"])
    assert {"good"} == set(output)
    assert {"id", "custom_id", "response", "error"} == set(output["good"])
    response = output["good"]["response"]
    assert 200 == response["status_code"]
    assert lasting(online.json()) == lasting(response["body"])
    errors = await read_lines(api, headers, ended["error_file_id"])
    assert {"bad"} == set(errors)
    assert (400, wrong.json()) == (
        errors["bad"]["response"]["status_code"],
        errors["bad"]["response"]["body"],
    )
    records = (await usage_of(api, account))[before:]
    assert [batch] == [record["batch_id"] for record in records]
    tokens = (records[0]["prompt_tokens"], records[0]["completion_tokens"])
    usage = response["body"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == tokens
    assert sum(tokens) == ended["usage"]["total_tokens"]


async def test_a_line_that_is_being_charged_is_answered_though_its_batch_ends(
    api: Api, owner: tuple[str, Headers]
) -> None:
    """Cancelled before its record is begun, it costs nothing; later, it is not lost."""
    account, _ = owner
    services, reached, let = api.services, asyncio.Event(), asyncio.Event()

    class Slow:
        """A ledger that says when it is asked, and waits."""

        async def record(self, usage: UsageRecord) -> None:
            reached.set()
            await let.wait()
            await services.ledger.record(usage)

    slow: Any = Slow()
    gate = Gate(
        api.buckets,
        dict.fromkeys(services.tiers, FREE),
        MonthlyBudgets(services.ledger.tokens_in_month),
    )
    answers = InProcessApi(services.models, Accountant(gate, slow, Measures(Recorder())))
    principal = await Directory(api.admin.accounts._registry.store).owner(account, None)
    body = json.dumps({"model": EMBEDDING, "input": "A fox"}).encode()

    def ask(usage: str) -> asyncio.Task[Answered]:
        asked = LineRequest(principal, "/v1/embeddings", body, "batch_1", usage, "req_1")
        return asyncio.create_task(answers.answer(asked))

    early = ask("use_early")
    await asyncio.sleep(0)
    early.cancel()
    with pytest.raises(asyncio.CancelledError):
        await early
    late = ask("use_late")
    await reached.wait()
    for _ in range(2):
        late.cancel()
        await asyncio.sleep(0)
    let.set()
    answered = await late
    assert 200 == answered.status
    assert answered.usage is not None
    assert ["batch_1"] == [used["batch_id"] for used in await usage_of(api, account)]


async def test_the_other_endpoints_are_answered_too(api: Api, owner: tuple[str, Headers]) -> None:
    """Embeddings, text completions, responses; minute limits do not hold for batches."""
    account, headers = owner
    body = {"model": EMBEDDING, "input": ["a fox", "a dog"], "encoding_format": "base64"}
    online = await api.client.post("/v1/embeddings", headers=headers, json=body)
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": body,
        "/v1/completions": {"model": CHAT, "prompt": "Once", "max_tokens": 3},
        "/v1/responses": {"model": CHAT, "input": "Hello", "max_output_tokens": 16},
    }
    ids = {}
    for url, each in bodies.items():
        file = await upload(api, headers, [line(str(n), url, each) for n in range(70)])
        answer = await create(api, headers, input_file_id=file, endpoint=url)
        ids[url] = answer.json()["id"]
    await run_batches(api)
    for url, batch in ids.items():
        ended = await retrieve(api, headers, batch)
        assert {"total": 70, "completed": 70, "failed": 0} == ended["request_counts"], url
    ended = await retrieve(api, headers, ids["/v1/embeddings"])
    output = await read_lines(api, headers, ended["output_file_id"])
    assert online.json() == output["5"]["response"]["body"]
    charged = [r for r in await usage_of(api, account) if r["batch_id"] is not None]
    assert 210 == len(charged)


async def test_a_batchs_tokens_cost_their_part_of_the_price(
    api: Api, owner: tuple[str, Headers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half, unless the model's price says otherwise; the month's budget holds."""
    account, headers = owner
    served = api.services.models.chats[CHAT]
    priced = served.spec.model_copy(update={"price": Price(input=1_000_000, batch=0.25)})
    monkeypatch.setitem(api.services.models.chats, CHAT, replace(served, spec=priced))
    await api.complete(headers)
    (online,) = await usage_of(api, account)
    url = "/v1/chat/completions"
    file = await upload(api, headers, [line("a", url, chat_body())])
    await create(api, headers, input_file_id=file)
    await run_batches(api)
    (record,) = (r for r in await usage_of(api, account) if r["batch_id"] is not None)
    assert online["prompt_tokens"] * 0.25 == pytest.approx(record["cost"])
    await api.admin.accounts.update(account, monthly_tokens=1)
    batch = (await create(api, headers, input_file_id=file)).json()["id"]
    await run_batches(api)
    ended = await retrieve(api, headers, batch)
    errors = await read_lines(api, headers, ended["error_file_id"])
    assert 429 == errors["a"]["response"]["status_code"]
    assert "insufficient_quota" == errors["a"]["response"]["body"]["error"]["code"]


async def test_an_input_of_more_lines_than_a_batch_may_have_fails(
    api: Api, owner: tuple[str, Headers]
) -> None:
    """As the reference says, by 50,001 lines that were all sent; nothing is answered."""
    account, headers = owner
    url, body = "/v1/embeddings", {"model": EMBEDDING, "input": "x"}
    async with api.services.files.uploading(account) as uploading:  # tests' HTTP takes 2 MB
        for number in range(50_001):
            await uploading.write(json.dumps(line(str(number), url, body)).encode() + b"\n")
        file = await uploading.finish("input.jsonl", "batch")
    answer = await create(api, headers, input_file_id=file.id, endpoint=url)
    await run_batches(api)
    ended = await retrieve(api, headers, answer.json()["id"])
    assert "failed" == ended["status"]
    codes = {error["code"]: error["message"] for error in ended["errors"]["data"]}
    assert (
        "The input has more than 50000 requests, the limit of a batch."
        == (codes["too_many_requests"])
    )
    assert {"total": 0, "completed": 0, "failed": 0} == ended["request_counts"]
    assert [] == await usage_of(api, account)


def refused(
    answer: httpx.Response, status: int, *, code: str | None = None, param: str | None = None
) -> None:
    """Fail where an answer is not an error with this status and, where given, code and field."""
    assert status == answer.status_code
    check(answer.json(), "ErrorResponse")
    error = answer.json()["error"]
    assert (code or error["code"], param or error["param"]) == (error["code"], error["param"])


async def usage_of(api: Api, account: str) -> list[dict[str, Any]]:
    """Return an account's usage records."""
    return [record async for page in api.ledger.export(account) for record in page]
