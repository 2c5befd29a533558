"""/v1/files: uploads as they stream in, lists, downloads, and what is left of what fails."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.conftest import Api
from tests.api.shapes import check

LINES = b'{"custom_id": "a"}\n{"custom_id": "b"}\n'
BATCH_DAYS = 30


async def upload(
    api: Api,
    headers: dict[str, str],
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


def stored(api: Api) -> list[str]:
    """Return the names of all content that there is."""
    return sorted(path.name for path in api.files.contents.root.local_path.iterdir())


async def test_a_file_is_uploaded_listed_read_and_deleted(api: Api) -> None:
    """In OpenAI's schemas; a batch's input expires after 30 days, other files never."""
    headers = await api.headers()
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
        "expires_at": created + BATCH_DAYS * 86_400,
        "filename": "input.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
    kept = (await upload(api, headers, purpose="user_data")).json()
    assert "expires_at" not in kept

    api_path = f"/v1/files/{file['id']}"
    assert file == (await api.client.get(api_path, headers=headers)).json()
    listed = (await api.client.get("/v1/files", headers=headers)).json()
    check(listed, "ListFilesResponse")
    assert {kept["id"], file["id"]} == {listed["first_id"], listed["last_id"]}
    content = await api.client.get(f"{api_path}/content", headers=headers)
    assert content.content == LINES
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"

    deleted = await api.client.delete(api_path, headers=headers)
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert stored(api) == [kept["id"]]
    for method, path in (("GET", ""), ("GET", "/content"), ("HEAD", "/content"), ("DELETE", "")):
        gone = await api.client.request(method, f"{api_path}{path}", headers=headers)
        assert gone.status_code == 404
