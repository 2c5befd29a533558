"""/v1/embedding_jobs: what is taken, what is refused, and who sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from omai_ray.embedding_jobs.queue import Done, JobError, JobQueue
from tests.api.conftest import CHAT, EMBEDDING, Api, Headers, bearer

pytestmark = pytest.mark.asyncio(loop_scope="session")
MISSING = "embjob_" + "0" * 31
ROOT = "/v1/embedding_jobs"


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that tests share."""
    return shared_api


async def upload(api: Api, headers: Headers, purpose: str = "user_data") -> str:
    """Upload a file; return its id."""
    answer = await api.client.post(
        "/v1/files",
        headers=headers,
        files={"file": ("corpus.parquet", b"PAR1")},
        data={"purpose": purpose},
    )
    return str(answer.json()["id"])


async def create(api: Api, headers: Headers, **fields: Any) -> httpx.Response:
    """Create a job over the column `text`, unless fields say otherwise; ... leaves one out."""
    body = {"model": EMBEDDING, "column": "text", **fields}
    body = {name: value for name, value in body.items() if value is not ...}
    return await api.client.post(ROOT, headers=headers, json=body)


def corpora(api: Api, account: str) -> Path:
    """Return where the test's server lets an account's jobs read and write."""
    return api.services.files.contents.root.local_path.parent / "corpora" / account


async def test_a_job_is_created_listed_and_retrieved(api: Api, owner: tuple[str, Headers]) -> None:
    """With all that was asked; the newest come first."""
    _, headers = owner
    file = await upload(api, headers)
    asked = {
        "input_file": file,
        "column": ...,
        "template": "{title}: {body}",
        "columns": ["id"],
        "on_long": "chunk",
        "chunks": {"tokens": 100, "overlap": 10, "pool": "mean"},
        "dtype": "float16",
        "metadata": {"of": "a test"},
    }
    answer = await create(api, headers, **asked)
    assert 200 == answer.status_code, answer.text
    job = answer.json()
    assert {name: value for name, value in asked.items() if value is not ...}.items() <= job.items()
    assert ("embedding_job", "validating", EMBEDDING) == (
        job["object"], job["status"], job["model"],
    )  # fmt: skip
    assert {"total": 0, "completed": 0, "failed": 0} == job["row_counts"]
    assert (None, None, None) == (job["input"], job["output"], job["column"])
    assert job == (await api.client.get(f"{ROOT}/{job['id']}", headers=headers)).json()
    api.wall.now_s += 1
    second = (await create(api, headers, input_file=file)).json()
    assert ("truncate", "float32", None) == (second["on_long"], second["dtype"], second["chunks"])
    page = (await api.client.get(ROOT, headers=headers, params={"limit": 1})).json()
    assert ([second], True) == (page["data"], page["has_more"])
    params = {"after": second["id"]}
    page = (await api.client.get(ROOT, headers=headers, params=params)).json()
    assert ([job], False) == (page["data"], page["has_more"])


async def test_a_location_gives_the_job_a_directory_of_its_own(
    api: Api, owner: tuple[str, Headers]
) -> None:
    """A local one or a bucket's."""
    account, headers = owner
    here = corpora(api, account)
    answer = await create(
        api, headers, input=f"{here}/a.parquet", output="s3://allowed/some/prefix"
    )
    job = answer.json()
    assert f"s3://allowed/some/prefix/{job['id']}" == job["output"]
    assert (f"{here}/a.parquet", None) == (job["input"], job["input_file"])


@pytest.mark.parametrize("field", ["input", "output"])
@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "place",
    [
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc",
        "/etc",
        "s3://foreign/data",
        "gs://foreign/data",
        "s3://allowed/some/prefix/../other",
        "s3://allowed/some/prefix?endpoint_override=http://169.254.169.254",
        "{corpora}/../../files",
    ],
)
async def test_a_place_that_is_not_on_the_list_is_refused(
    api: Api, owner: tuple[str, Headers], field: str, place: str
) -> None:
    """As input and as output, before anything is read; nothing is left to be done."""
    account, headers = owner
    here = str(corpora(api, account))
    fields = {"input": f"{here}/in", "output": f"{here}/out", field: place.format(corpora=here)}
    answer = await create(api, headers, **fields)
    assert 400 == answer.status_code
    error = answer.json()["error"]
    assert ("invalid_request_error", field) == (error["type"], error["param"])
    assert [] == (await api.client.get(ROOT, headers=headers)).json()["data"]


async def test_another_accounts_place_is_refused(api: Api, owner: tuple[str, Headers]) -> None:
    """An entry with {account} is each account's own."""
    _, headers = owner
    other, _ = await api.key("basic")
    answer = await create(
        api, headers, input=f"{corpora(api, other)}/in", output="s3://allowed/some/prefix"
    )
    assert (400, "location_not_allowed") == (answer.status_code, answer.json()["error"]["code"])


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"input_file": ...}, 400, "input_file", "'input_file' or 'input'"),
        ({"input": "s3://allowed/some/prefix/a"}, 400, "input_file", "one of the two"),
        (
            {"input_file": ..., "input": "s3://allowed/some/prefix/a"},
            400, "output", "needs one to write to",
        ),
        ({"column": ...}, 400, "column", "'column' or 'template'"),
        ({"template": "{a}"}, 400, "column", "one of the two"),
        ({"column": ..., "template": "{a!r}"}, 400, "template", "nothing but a column's name"),
        ({"column": ..., "template": "{a"}, 400, "template", "expected '}'"),
        ({"column": ..., "template": "none"}, 400, "template", "names no column"),
        ({"chunks": {"tokens": 5}}, 400, "chunks", "'on_long' is 'truncate'"),
        (
            {"on_long": "chunk", "chunks": {"tokens": 5, "overlap": 5}},
            400, "chunks.overlap", "must be below",
        ),
        ({"on_long": "cut"}, 400, "on_long", "truncate"),
        ({"chunks": {"size": 5}, "on_long": "chunk"}, 400, "chunks.size", "size"),
        ({"max_dead": 0.5}, 400, "max_dead", "max_dead"),
        ({"overwrite": True}, 400, "overwrite", "overwrite"),
        ({"columns": "id"}, 400, "columns", "array"),
        ({"model": ...}, 400, "model", "model"),
        ({"model": CHAT}, 404, "model", CHAT),
        ({"model": "nothing"}, 404, "model", "nothing"),
        ({"input_file": "file-" + "0" * 31}, 404, "input_file", "No such File"),
        ({"input_file": "../../etc/passwd"}, 404, "input_file", "No such File"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_its_field(
    api: Api,
    owner: tuple[str, Headers],
    fields: dict[str, Any],
    status: int,
    param: str,
    message: str,
) -> None:
    """In the envelope, with what would be right."""
    _, headers = owner
    answer = await create(api, headers, **{"input_file": await upload(api, headers), **fields})
    error = answer.json()["error"]
    assert (status, param) == (answer.status_code, error["param"]), error
    assert message in error["message"]


async def test_a_file_of_another_purpose_or_account_is_refused(
    api: Api, owner: tuple[str, Headers]
) -> None:
    """The one by its purpose, the other as one that is not there."""
    _, headers = owner
    answer = await create(api, headers, input_file=await upload(api, headers, "batch"))
    assert (400, "input_file") == (answer.status_code, answer.json()["error"]["param"])
    assert "purpose is 'batch'" in answer.json()["error"]["message"]
    _, key = await api.key("basic")
    answer = await create(api, headers, input_file=await upload(api, bearer(key)))
    assert 404 == answer.status_code


async def test_a_key_that_may_not_use_the_model_is_refused(api: Api) -> None:
    """As online."""
    account = await api.admin.accounts.create(None, "basic", models=[CHAT])
    _, key = await api.admin.keys.create(account.id)
    answer = await create(api, bearer(key), input_file=await upload(api, bearer(key)))
    assert (403, "model_not_allowed") == (answer.status_code, answer.json()["error"]["code"])


async def test_jobs_are_their_accounts_alone(api: Api, owner: tuple[str, Headers]) -> None:
    """Another's is answered as one that is not there, as is one that never was."""
    _, headers = owner
    job = (await create(api, headers, input_file=await upload(api, headers))).json()["id"]
    _, key = await api.key("basic")
    for asking, name in ((bearer(key), job), (headers, MISSING), (headers, "embjob_x")):
        for method, path in (("GET", ""), ("POST", "/cancel")):
            answer = await api.client.request(method, f"{ROOT}/{name}{path}", headers=asking)
            assert 404 == answer.status_code
            assert "No embedding job found" in answer.json()["error"]["message"]
    assert [] == (await api.client.get(ROOT, headers=bearer(key))).json()["data"]
    assert 401 == (await api.client.get(f"{ROOT}/{job}")).status_code
    answer = await api.client.get(ROOT, headers=headers, params={"after": "file-1"})
    assert (400, "after") == (answer.status_code, answer.json()["error"]["param"])


async def test_a_job_shows_how_far_it_is_and_what_it_failed_by(
    api: Api, owner: tuple[str, Headers]
) -> None:
    """Each state, as the driver notes it."""
    _, headers = owner
    made = (await create(api, headers, input_file=await upload(api, headers))).json()
    path, files = f"{ROOT}/{made['id']}", api.services.files
    queue = JobQueue(api.services.ledger.store, files, api.wall)
    (job,) = [each for each in await queue.claim("me", 60.0) if each.id == made["id"]]

    async def shown() -> dict[str, Any]:
        found: dict[str, Any] = (await api.client.get(path, headers=headers)).json()
        return found

    assert await queue.begin(job, "me", 10, 100, None) is None
    await queue.progress(job, "me", Done(3, 1, 30))
    now = await shown()
    assert ("in_progress", {"total": 10, "completed": 3, "failed": 1}) == (
        now["status"], now["row_counts"],
    )  # fmt: skip
    assert {"input_tokens": 30, "total_tokens": 30} == now["usage"]
    await queue.close(job, "me", JobError("invalid_job", "no column 'text'"))
    assert "finalizing" == (await shown())["status"]
    await queue.finish(await queue.read(job.id), "me", Done(3, 1, 30), None, None)
    now = await shown()
    assert ("failed", {"code": "invalid_job", "message": "no column 'text'"}) == (
        now["status"], now["error"],
    )  # fmt: skip
    assert now["failed_at"] is not None
    answer = await api.client.post(f"{path}/cancel", headers=headers)
    assert (400, "embedding_job_not_cancellable") == (
        answer.status_code, answer.json()["error"]["code"],
    )  # fmt: skip


async def test_a_job_can_be_cancelled_twice(api: Api, owner: tuple[str, Headers]) -> None:
    """The second time changes nothing."""
    _, headers = owner
    job = (await create(api, headers, input_file=await upload(api, headers))).json()["id"]
    for _ in range(2):
        answer = await api.client.post(f"{ROOT}/{job}/cancel", headers=headers)
        assert (200, "cancelling") == (answer.status_code, answer.json()["status"])
