"""/v1/files: uploads as they stream in, lists, downloads, and what is left of what fails."""

from __future__ import annotations

import asyncio
import errno
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.types import Message

from omai_ray.api import multipart
from omai_ray.files.contents import Contents
from omai_ray.settings import DEFAULT_TIERS
from omai_ray.storage import ObjectNotFound, Output, StorageError
from tests.api.conftest import FILE_LIMITS, MAX_BODY_BYTES, Api, Exchange, Headers, bearer
from tests.api.shapes import check, check_error

Left = Callable[[], set[str]]
pytestmark = pytest.mark.asyncio(loop_scope="session")
LINES = b'{"custom_id": "a"}\n{"custom_id": "b"}\n'
DIGITS = b"0123456789"
MISSING = "file-" + "0" * 31
BOUNDARY = "b0undary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


async def upload(
    api: Api,
    headers: Headers,
    content: bytes = LINES,
    filename: str = "input.jsonl",
    **fields: Any,
) -> httpx.Response:
    """Upload a file for a batch, unless fields say otherwise; one given as ... is left out."""
    data = {"purpose": "batch", **fields}
    return await api.client.post(
        "/v1/files",
        headers=headers,
        files={"file": (filename, content)},
        data={name: value for name, value in data.items() if value is not ...},
    )


def form(*parts: tuple[str, bytes], end: bytes = b"--") -> bytes:
    """Return a form's bytes: each part by what follows its Content-Disposition, and its content."""
    return b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
        % (BOUNDARY.encode(), name.encode(), content)
        for name, content in parts
    ) + b"--%s%s\r\n" % (BOUNDARY.encode(), end)


@pytest.fixture
def api(shared_api: Api) -> Api:
    """Return the application that tests share."""
    return shared_api


@pytest_asyncio.fixture(loop_scope="session")
async def headers(api: Api) -> Headers:
    """Return the headers of an account of the test's own."""
    return bearer((await api.key())[1])


@pytest.fixture
def stored(api: Api) -> Left:
    """Return what tells the names of the content that the test has left."""
    directory = api.files.contents.root.local_path
    before = {path.name for path in directory.iterdir()}
    return lambda: {path.name for path in directory.iterdir()} - before


async def test_a_file_is_uploaded_listed_read_and_deleted(
    api: Api, headers: Headers, stored: Left
) -> None:
    """In OpenAI's schemas; a batch's input expires after 30 days, other files never."""
    response = await upload(api, headers)
    assert response.status_code == 200
    file = response.json()
    check(file, "OpenAIFile")
    created = int(api.wall())
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(LINES),
        "created_at": created,
        "expires_at": created + 30 * 86_400,
        "filename": "input.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
    kept = (await upload(api, headers, purpose="user_data")).json()
    assert "expires_at" not in kept

    path = f"/v1/files/{file['id']}"
    assert file == (await api.client.get(path, headers=headers)).json()
    listed = (await api.client.get("/v1/files", headers=headers)).json()
    check(listed, "ListFilesResponse")
    assert {kept["id"], file["id"]} == {listed["first_id"], listed["last_id"]}
    content = await api.client.get(f"{path}/content", headers=headers)
    assert content.content == LINES
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"

    deleted = (await api.client.delete(path, headers=headers)).json()
    check(deleted, "DeleteFileResponse")
    assert deleted == {"id": file["id"], "object": "file", "deleted": True}
    assert stored() == {kept["id"]}
    for method, part in (("GET", ""), ("GET", "/content"), ("HEAD", "/content"), ("DELETE", "")):
        gone = await api.client.request(method, f"{path}{part}", headers=headers)
        assert gone.status_code == 404


async def test_an_expiry_may_be_given(api: Api, headers: Headers) -> None:
    """By OpenAI's two fields, of which neither goes without the other; the file then goes."""
    expiry: dict[str, Any] = {
        "expires_after[anchor]": "created_at",
        "expires_after[seconds]": "3600",
    }
    file = (await upload(api, headers, **expiry)).json()
    assert file["expires_at"] == file["created_at"] + 3600
    api.wall.now_s += 3601
    gone = await api.client.get(f"/v1/files/{file['id']}", headers=headers)
    assert gone.status_code == 404
    check_error(gone.json(), type="invalid_request_error", code="not_found", param="id")


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"purpose": ...}, "purpose", "missing_required_parameter", "'purpose'"),
        ({"purpose": "fine-tune"}, "purpose", "invalid_value", "'fine-tune'.*'batch' or 'user_d"),
        ({"purpose": "batch_output"}, "purpose", "invalid_value", "'batch_output'"),
        ({"purpose": "x" * 1025}, "purpose", "invalid_value", "at most 1024 bytes"),
        ({"colour": "red"}, "colour", "unknown_parameter", "'colour'"),
        ({"expires_after[seconds]": "3600"}, None, "invalid_value", "give both"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "expires_after[seconds]",
            "integer_below_min_value",
            ">= 3600, but got 3599",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
            "expires_after[seconds]",
            "integer_above_max_value",
            "<= 2592000, but got 2592001",
        ),
        (
            {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
            "invalid_value",
            "'now'.*'created_at'",
        ),
    ],
)
async def test_a_field_that_cannot_be_is_refused_by_name(
    api: Api,
    headers: Headers,
    stored: Left,
    fields: dict[str, Any],
    param: str | None,
    code: str,
    words: str,
) -> None:
    """The message has the value and the limit; nothing is kept."""
    response = await upload(api, headers, **fields)
    assert response.status_code == 400
    check_error(response.json(), type="invalid_request_error", code=code, param=param)
    assert re.search(words, response.json()["error"]["message"])
    assert stored() == set()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(("name=purpose", b"batch")), "Missing required parameter: 'file'"),
        (form(("name=file", b"x"), ("name=file", b"y")), "has 'file' more than once"),
        (form(("name=purpose", b"batch"), ("name=file", b"x"), end=b""), "ends before its last"),
        (form(("name=purpose", b"batch"), ("name=file", b"x"))[:-40], "ends before its last"),
        (form(("filename=a", b"x")), "a part of it has no name"),
        (b"no form at all", "could not parse"),
        (b"", "ends before its last"),
        (
            form(("name=file\r\nContent-Transfer-Encoding: base64", b"eA==")),
            "Content-Transfer-Encoding",
        ),
        (form(*((f"name=n{n}", b"") for n in range(50))), "parameter"),
    ],
)
async def test_a_form_that_cannot_be_read_is_refused(
    api: Api, headers: Headers, stored: Left, body: bytes, words: str
) -> None:
    """In the envelope, and nothing is kept of its file."""
    headers = {**headers, **FORM}
    response = await api.client.post("/v1/files", headers=headers, content=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert stored() == set()


async def test_another_body_than_a_form_is_refused(api: Api, headers: Headers) -> None:
    """With what it has to be."""
    response = await api.client.post("/v1/files", headers=headers, json={})
    assert response.status_code == 415
    assert "multipart/form-data" in response.json()["error"]["message"]
    nameless = {**headers, "Content-Type": "multipart/form-data"}
    response = await api.client.post("/v1/files", headers=nameless, content=b"x")
    assert response.status_code == 400
    assert "names no boundary" in response.json()["error"]["message"]


async def test_the_purpose_may_follow_the_file_and_the_file_have_no_name(
    api: Api, headers: Headers
) -> None:
    """As openai's client for JavaScript, and curl, send them."""
    headers = {**headers, **FORM}
    body = form(('name="file"', LINES), ('name="purpose"', b"batch"))
    response = await api.client.post("/v1/files", headers=headers, content=body)
    assert response.status_code == 200
    assert (response.json()["filename"], response.json()["bytes"]) == ("upload", len(LINES))


async def test_a_form_may_come_in_pieces_of_any_size(api: Api, headers: Headers) -> None:
    """A boundary may be cut anywhere, and the file have what almost is one."""
    content = b"\r\n--b0undar\r\n--\r\n--b0undar\r\n\r"
    body = form(("name=purpose", b"user_data"), ('name=file; filename="a"', content))
    headers = {**headers, **FORM}
    for size in (1, 2, 7):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        response = await api.client.post("/v1/files", headers=headers, content=pieces())
        assert response.status_code == 200
        path = f"/v1/files/{response.json()['id']}/content"
        assert content == (await api.client.get(path, headers=headers)).content


@pytest.mark.parametrize(
    ("purpose", "most"),
    [("batch", FILE_LIMITS.max_batch_bytes), ("user_data", FILE_LIMITS.max_bytes)],
)
@pytest.mark.parametrize("first", ["purpose", "file"])
async def test_a_file_may_have_its_purposes_size_and_no_byte_more(
    api: Api,
    headers: Headers,
    stored: Left,
    purpose: str,
    most: int,
    first: str,
) -> None:
    """Far above other bodies' limit; whichever part comes first."""
    headers = {**headers, **FORM}
    assert most > MAX_BODY_BYTES
    for size, status in ((most, 200), (most + 1, 413)):
        parts = [("name=purpose", purpose.encode()), ("name=file; filename=a", b"x" * size)]
        body = form(*(parts if first == "purpose" else parts[::-1]))
        response = await api.client.post("/v1/files", headers=headers, content=body)
        assert response.status_code == status
        if status == 200:
            await api.client.delete(f"/v1/files/{response.json()['id']}", headers=headers)
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("payload_too_large", "file")
    assert f"at most {most} bytes" in error["message"]
    assert stored() == set()


async def test_an_upload_that_never_ends_is_cut_off(
    api: Api, headers: Headers, stored: Left
) -> None:
    """Without a length, too; and only uploads may be so long."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield form(("name=file; filename=a", b""), end=b"")[: -len(BOUNDARY) - 6]
        for _ in range(1000):
            sent += 100_000
            yield b"x" * 100_000

    response = await api.client.post("/v1/files", headers={**headers, **FORM}, content=endless())
    assert response.status_code == 413
    assert sent <= FILE_LIMITS.max_bytes + 2 * 100_000
    assert stored() == set()
    for path in ("/v1/embeddings", f"/v1/files/{MISSING}"):
        response = await api.client.post(path, headers=headers, content=b" " * MAX_BODY_BYTES * 2)
        assert response.status_code == 413
        assert f"at most {MAX_BODY_BYTES} bytes" in response.json()["error"]["message"]


async def test_an_upload_is_never_held_whole(api: Api, headers: Headers) -> None:
    """Neither on its way in nor on its way out."""
    piece = b"x" * 65_536
    pieces = FILE_LIMITS.max_bytes // len(piece)

    async def body() -> AsyncIterator[bytes]:
        head = form(("name=purpose", b"user_data"), ("name=file; filename=a", b""), end=b"")
        yield head[: -len(BOUNDARY) - 6]
        for _ in range(pieces):
            yield piece
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    tracemalloc.start()
    try:
        response = await api.client.post("/v1/files", headers={**headers, **FORM}, content=body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.json()["bytes"] == pieces * len(piece)
    assert peak < FILE_LIMITS.max_bytes


@pytest.mark.parametrize(
    ("asked", "status", "expected", "told"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, DIGITS, "bytes 0-9/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=3-2", 200, DIGITS, None),
        ("bytes=0-1,4-5", 200, DIGITS, None),
        ("lines=0-1", 200, DIGITS, None),
        ("bytes=a-b", 200, DIGITS, None),
    ],
)
async def test_a_part_of_the_content_can_be_asked_for(
    api: Api,
    headers: Headers,
    asked: str,
    status: int,
    expected: bytes | None,
    told: str | None,
) -> None:
    """As RFC 9110 has it; HEAD says the same without the bytes."""
    file = (await upload(api, headers, DIGITS)).json()["id"]
    path = f"/v1/files/{file}/content"
    response = await api.client.get(path, headers={**headers, "Range": asked})
    assert response.status_code == status
    assert response.headers.get("content-range") == told
    if expected is None:
        error = response.json()
        check_error(error, type="invalid_request_error", code="range_not_satisfiable", param=None)
        return
    assert response.content == expected
    assert int(response.headers["content-length"]) == len(expected)
    head = await api.client.head(path, headers={**headers, "Range": asked})
    same = ("content-range", "content-length", "etag", "accept-ranges", "content-disposition")
    assert [head.headers.get(name) for name in same] == [response.headers.get(n) for n in same]
    assert (head.status_code, head.content) == (status, b"")


async def test_a_part_of_other_content_is_all_of_it(api: Api, headers: Headers) -> None:
    """If-Range: what a client has the beginning of may have been another file."""
    file = (await upload(api, headers, DIGITS)).json()["id"]
    path = f"/v1/files/{file}/content"
    etag = (await api.client.head(path, headers=headers)).headers["etag"]
    for given, status in ((etag, 206), ('"other"', 200)):
        asked = {**headers, "Range": "bytes=5-", "If-Range": given}
        assert status == (await api.client.get(path, headers=asked)).status_code


async def test_head_reads_no_content(
    api: Api, headers: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be all that GET reads."""
    file = (await upload(api, headers, DIGITS)).json()["id"]
    monkeypatch.setattr(Contents, "open", None)
    response = await api.client.head(f"/v1/files/{file}/content", headers=headers)
    assert (response.status_code, response.headers["content-length"]) == (200, "10")


@pytest.mark.fault(22)
async def test_a_downloads_name_is_never_more_than_a_name(api: Api, headers: Headers) -> None:
    """However the file is called: no other header, no path, and in UTF-8 what it was."""
    headers = {**headers, **FORM}
    name = 'name=file; filename="../..\\a/b\\"ü;x=%0d%0aSet-Cookie: a"'
    body = form(("name=purpose", b"batch"), (name, b"x"))
    response = await api.client.post("/v1/files", headers=headers, content=body)
    file = response.json()
    assert file["filename"] == 'b"ü;x=%0d%0aSet-Cookie: a'
    content = await api.client.get(f"/v1/files/{file['id']}/content", headers=headers)
    assert content.headers["content-disposition"] == (
        'attachment; filename="b___x__0d_0aSet-Cookie_ a"; '
        "filename*=UTF-8''b%22%C3%BC%3Bx%3D%250d%250aSet-Cookie%3A%20a"
    )
    assert "set-cookie" not in content.headers


@pytest.mark.parametrize(
    "name", [MISSING, "others", "..%2f..%2fetc%2fpasswd", "file-%00", "file-" + "a" * 400]
)
@pytest.mark.fault(21, 22)
async def test_what_is_not_ones_own_is_not_there(
    api: Api, headers: Headers, stored: Left, name: str
) -> None:
    """Another account's file is answered as one that there never was."""
    _, other = await api.key()
    others = (await upload(api, bearer(other))).json()["id"]
    path = f"/v1/files/{others if name == 'others' else name}"
    for method, part in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = await api.client.request(method, f"{path}{part}", headers=headers)
        assert response.status_code == 404
        error = response.json()["error"]
        if error["code"] != "unknown_url":  # a path of more parts
            assert "No such File object" in error["message"]
    assert (await api.client.get("/v1/files", headers=headers)).json()["data"] == []
    assert stored() == {others}


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=10001", "limit"), ("order=up", "order"), ("after=x", "after"),
     ("color=red", "color")],
)  # fmt: skip
async def test_a_wrong_query_is_refused_by_name(
    api: Api, headers: Headers, query: str, param: str
) -> None:
    """As everywhere."""
    response = await api.client.get(f"/v1/files?{query}", headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_lists_come_in_pages_either_way(api: Api, headers: Headers) -> None:
    """The newest first unless asked otherwise; a purpose that no file has lists none."""
    made = []
    for _ in range(3):
        api.wall.now_s += 1
        made.append((await upload(api, headers)).json()["id"])

    async def listed(query: str) -> tuple[list[str], bool]:
        page = (await api.client.get(f"/v1/files?{query}", headers=headers)).json()
        return [file["id"] for file in page["data"]], page["has_more"]

    assert await listed("limit=2") == (made[:0:-1], True)
    assert await listed(f"limit=2&after={made[1]}") == (made[:1], False)
    assert await listed("limit=2&order=asc") == (made[:2], True)
    assert await listed("purpose=batch") == (made[::-1], False)
    assert await listed("purpose=fine-tune") == ([], False)


async def test_the_tiers_storage_is_kept(
    api: Api, stored: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear refusal that need not be retried; deleting makes room."""
    small = DEFAULT_TIERS["basic"].model_copy(update={"storage_bytes": 100})
    monkeypatch.setitem(DEFAULT_TIERS, "basic", small)
    headers = await api.headers("basic")
    first = (await upload(api, headers, b"x" * 60)).json()["id"]
    refused = await upload(api, headers, b"x" * 60)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    check_error(
        refused.json(), type="insufficient_quota", code="storage_quota_exceeded", param=None
    )
    assert "Limit 100 bytes" in refused.json()["error"]["message"]
    assert stored() == {first}
    await api.client.delete(f"/v1/files/{first}", headers=headers)
    assert (await upload(api, headers, b"x" * 60)).status_code == 200


class Half(Exchange):
    """Sends the first of two bodies; then the client leaves, or, where it stops, sends no more."""

    stops = False

    async def _receive(self) -> Message:
        if len(self.bodies) == 2:
            return await super()._receive()
        if self.stops:
            await self.left.wait()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize(("stops", "status"), [(False, 499), (True, 400)])
async def test_a_client_that_leaves_or_stops_in_mid_upload_leaves_nothing(
    api: Api, stored: Left, monkeypatch: pytest.MonkeyPatch, stops: bool, status: int
) -> None:
    """What was written is removed; who sends no more does not keep a place among the uploads."""
    monkeypatch.setattr(multipart, "SILENCE_S", 0.01 if stops else 60)
    account, key = await api.key()
    body = form(("name=purpose", b"batch"), ("name=file; filename=a", b"x" * 1_900_000))
    begun = len(body) - 100
    exchange = Half(api.app, "/v1/files", {**bearer(key), **FORM}, body[:begun], body[begun:])
    exchange.stops = stops
    await exchange.run()
    assert exchange.status == status
    assert (b"request_timeout" in exchange.body) == stops
    assert stored() == set()
    assert await api.files.stored_bytes(account) == 0
    assert (await upload(api, bearer(key))).status_code == 200


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EIO, 503)])
async def test_storage_that_fails_is_told_and_keeps_nothing(
    api: Api,
    headers: Headers,
    stored: Left,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    """A full disk is 507 and not retried; storage that is away is 503 with a Retry-After."""

    def fail(*_: object) -> None:
        raise StorageError("/secret/place: broken") from OSError(number, "")

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", fail)
        response = await upload(api, headers)
    assert response.status_code == status
    assert "/secret/place" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)
    assert (response.headers.get("x-should-retry") == "false") == (status == 507)
    assert stored() == set()
    assert (await upload(api, headers)).status_code == 200


async def test_a_place_that_is_gone_is_storage_that_is_away(
    api: Api, headers: Headers, stored: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not something that the client did not find, and nothing names it."""

    def fail(*_: object) -> None:
        raise ObjectNotFound("/secret/place: no such file or object")

    with monkeypatch.context() as patch:
        patch.setattr(Output, "close", fail)
        response = await upload(api, headers)
    assert response.status_code == 503
    assert "/secret/place" not in response.text
    assert stored() == set()


async def test_an_upload_that_takes_too_long_in_all_is_given_up(
    api: Api, headers: Headers, stored: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However steadily it trickles in."""
    monkeypatch.setattr(multipart, "UPLOAD_S", 0.0)
    response = await upload(api, headers)
    assert response.status_code == 400
    assert "did not end within 0 s" in response.text
    check_error(response.json(), type="invalid_request_error", code="request_timeout", param=None)
    assert stored() == set()


async def test_a_file_in_use_cannot_be_deleted(api: Api) -> None:
    """And says why; 400, because clients retry a 409 by themselves."""
    account, key = await api.key()
    file = (await upload(api, bearer(key))).json()["id"]
    async with api.ledger.store.writing() as connection:
        await api.files.hold(connection, account, file)
    response = await api.client.delete(f"/v1/files/{file}", headers=bearer(key))
    assert response.status_code == 400
    check_error(response.json(), type="invalid_request_error", code="file_in_use", param="file_id")


async def test_a_user_has_the_files_of_their_account(api: Api) -> None:
    """By password or session as by key."""
    account, key = await api.key()
    await api.admin.users.create("ada", "correct horse", account=account)
    file = (await upload(api, bearer(key))).json()
    auth = httpx.BasicAuth("ada", "correct horse")
    response = await api.client.get(f"/v1/files/{file['id']}", auth=auth)
    assert response.json() == file
    assert (await api.client.get("/v1/files")).status_code == 401


async def test_the_document_has_the_routes_of_files(api: Api) -> None:
    """With the form's fields, the content's type and the statuses of their own."""
    document = (await api.client.get("/openapi.json")).json()
    create = document["paths"]["/v1/files"]["post"]
    body = create["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"]
    fields = document["components"]["schemas"][body.rpartition("/")[2]]
    assert {"file", "purpose"} == set(fields["required"])
    assert {"expires_after[anchor]", "expires_after[seconds]"} < fields["properties"].keys()
    assert "507" in create["responses"]
    content = document["paths"]["/v1/files/{file_id}/content"]
    assert content.keys() == {"get"}
    assert {"200", "206", "416"} < content["get"]["responses"].keys()


async def test_uploads_do_not_block_each_other(api: Api, headers: Headers) -> None:
    """Several at once, each with its own content."""
    contents = [bytes([n]) * (300_000 + n) for n in range(8)]
    done = await asyncio.gather(*(upload(api, headers, content) for content in contents))
    for content, response in zip(contents, done, strict=True):
        path = f"/v1/files/{response.json()['id']}/content"
        assert content == (await api.client.get(path, headers=headers)).content
