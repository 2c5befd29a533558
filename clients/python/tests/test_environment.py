from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from omai_stub import HELLO, SessionStub, Stub, refusal, settle

import omai

Make = Callable[..., Any]
LEAK = "leaked-from-the-environment"


def read_by_openai() -> set[str]:
    """Return every variable of its own that the installed openai names anywhere."""
    files = Path(str(openai.__file__)).parent.rglob("*.py")
    named = {name for file in files for name in re.findall(r"\bOPENAI_[A-Z_]+\b", file.read_text())}
    return named - {"OPENAI_LOG"}  # read when openai is imported, and only for its logger


@pytest.fixture
def openai_environment(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Set all of them."""
    names = read_by_openai()
    for name in names:
        monkeypatch.setenv(name, LEAK)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Leak: {LEAK}\nAuthorization: Bearer {LEAK}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    return names


def sent(stub: Stub) -> str:
    """Return all that a stub was sent."""
    return "\n".join(f"{s.path}\n{s.query}\n{s.headers}\n{s.body!r}" for s in stub.seen)


def test_all_known_variables_are_looked_for(openai_environment: set[str]) -> None:
    """The search finds those that are known, so it will find new ones."""
    known = {"API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET", "BASE_URL"}
    assert {f"OPENAI_{name}" for name in known | {"CUSTOM_HEADERS"}} <= openai_environment


@pytest.mark.usefixtures("openai_environment")
async def test_no_variable_of_openai_is_sent(make: Make, stub: Stub) -> None:
    """Neither key, organization, project, headers nor URL; in copies neither."""
    client = make(api_key="k", base_url=stub.base_url, default_headers={"X-Own": "1"})
    copy = client.with_options(max_retries=1).copy(timeout=7)
    for each in (client, copy, copy.with_options(default_headers={"X-More": "2"})):
        await settle(each.chat.completions.create(model="m", messages=HELLO))
        await settle(each.tokenize(model="m", prompt="text"))
        await settle(each.with_raw_response.models.list())
    assert 9 == len(stub.seen)
    assert LEAK not in sent(stub)
    for seen in stub.seen:
        assert "Bearer k" == seen.headers["Authorization"]
        assert "1" == seen.headers["X-Own"]
        assert not [name for name in seen.headers if name.lower().startswith("openai")]
    assert "2" == stub.seen[-1].headers["X-More"]


@pytest.mark.usefixtures("openai_environment")
async def test_no_variable_of_openai_is_sent_in_a_session(
    make: Make, sessions: SessionStub
) -> None:
    """Logging in and out included."""
    client = make(username="ada", password=sessions.password, base_url=sessions.base_url)
    await settle(client.chat.completions.create(model="m", messages=HELLO))
    await settle(client.logout())
    assert [
        "/v1/auth/login",
        "/v1/chat/completions",
        "/v1/auth/logout",
    ] == [seen.path for seen in sessions.seen]
    assert LEAK not in sent(sessions)
    for seen in sessions.seen:
        assert "Authorization" not in seen.headers


@pytest.mark.usefixtures("openai_environment")
def test_no_variable_of_openai_is_a_credential(make: Make) -> None:
    """OPENAI_API_KEY alone is no key of OMAi's, and OPENAI_BASE_URL no place to send one."""
    with pytest.raises(omai.CredentialsError):
        make()
    assert "https://api.omai.ai/v1/" == str(make(api_key="k").base_url)


@pytest.mark.usefixtures("openai_environment")
async def test_administrative_resources_use_the_same_key(make: Make, stub: Stub) -> None:
    """They have a key of their own in OpenAI's API; here they are answered 404, as is all else."""
    stub.queue.append(refusal(404))
    client = make(api_key="k", base_url=stub.base_url)
    with pytest.raises(omai.NotFoundError):
        await settle(client.admin.organization.projects.retrieve("p"))
    assert "Bearer k" == stub.seen[0].headers["Authorization"]


def test_environment_is_left_as_it_was(make: Make, openai_environment: set[str]) -> None:
    """Other clients in the process still find their variables."""
    make(api_key="k")
    assert openai_environment <= set(os.environ)
