"""The platform behind HAProxy, as `proxy: haproxy` starts it: nothing that Serve leaves open is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments.edge import AHEAD_BYTES
from tests.ray.test_command import address, create_key, serving
from tests.ray.test_reload import write

CHAT = {"model": "omai-gpt-4", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def behind_haproxy(
    tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Path]]:
    """Return a client with a key, and the state directory of what it calls."""
    directory = tmp_path_factory.mktemp("haproxy")
    config = directory / "platform.yaml"
    ingress = {"num_cpus": 0.1, "max_body_bytes": 100_000}
    write(config, tiny_models, proxy="haproxy", ingress=ingress)
    state = directory / "state"
    with serving(state, None, "--config", str(config)) as process:
        url = address(process)
        headers = {"Authorization": f"Bearer {create_key(state)}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            yield client, state


def test_answers_and_streams_come_through(behind_haproxy: tuple[httpx.Client, Path]) -> None:
    """Whole, with one request id."""
    client, _ = behind_haproxy
    whole = client.post("/v1/chat/completions", json=CHAT)
    assert whole.status_code == 200
    assert len(whole.headers.get_list("x-request-id")) == 1
    streamed = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert streamed.text.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize(
    "steering",
    [
        {"x-request-timeout-seconds": "0.000001"},
        {"X_Request_Timeout_Seconds": "0.000001"},
        {"x-request-disconnect-disabled": "?1", "serve-multiplexed-model-id": "other"},
    ],
)
def test_serves_control_headers_are_not_obeyed(
    behind_haproxy: tuple[httpx.Client, Path], steering: dict[str, str]
) -> None:
    """A client cannot say how long its request may run, nor where."""
    client, _ = behind_haproxy
    response = client.post("/v1/chat/completions", json=CHAT, headers=steering)
    assert response.status_code == 200


def test_serves_routes_are_not_shown(behind_haproxy: tuple[httpx.Client, Path]) -> None:
    """The path leads nowhere, in the envelope."""
    client, _ = behind_haproxy
    response = client.get("/-/routes")
    assert (404, "unknown_url") == (response.status_code, response.json()["error"]["code"])


def test_a_body_that_is_too_long_is_refused(behind_haproxy: tuple[httpx.Client, Path]) -> None:
    """By the length of the settings."""
    client, _ = behind_haproxy
    response = client.post("/v1/chat/completions", content=b" " * 200_000)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


def test_an_upload_comes_through_paced(behind_haproxy: tuple[httpx.Client, Path]) -> None:
    """Longer than other bodies, and than what the edge reads ahead."""
    client, _ = behind_haproxy
    content = bytes(range(256)) * (3 * AHEAD_BYTES // 256)
    form, parts = {"purpose": "user_data"}, {"file": ("a", content)}
    answer = client.post("/v1/files", data=form, files=parts)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["bytes"] == len(content)
    assert client.get(f"/v1/files/{made['id']}/content").content == content


@pytest.mark.fault(25)
def test_only_loopback_is_listened_on(behind_haproxy: tuple[httpx.Client, Path]) -> None:
    """By HAProxy: statistics, metrics, and the API where it is told so."""
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9]: line.split()[1] for line in listening if line.split()[3] == "0A"}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            if b"/bin/haproxy\0" not in line or b"omai-ray-" not in line:
                continue
            for descriptor in (process / "fd").iterdir():
                inode = re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink()))
                found += [inodes[i] for i in inode if i in inodes]
        except OSError:  # it has ended
            continue
    assert len(set(found)) >= 3
    assert all(place.startswith("0100007F:") for place in found)


def test_the_callers_address_is_known(behind_haproxy: tuple[httpx.Client, Path]) -> None:
    """Not that of HAProxy's connection to the ingress; nobody may say another."""
    client, state = behind_haproxy
    response = client.get("/v1/models", headers={"x-omai-peer": "203.0.113.9:1"})
    assert response.status_code == 200
    assert "203.0.113.9" not in (state / "omai.log").read_text()
