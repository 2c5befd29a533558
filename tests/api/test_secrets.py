"""A canary in prompts, keys, passwords and exceptions, through every path: no log has it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from omai_ray.identity import keys
from omai_ray.store import Store
from omai_ray.store.store import overloaded
from omai_ray.telemetry.logs import configure_logs
from tests.api.conftest import Api, Exchange, bearer, chat_body

CANARY = "canaryw0rd"
PROMPT = [{"role": "user", "content": f"{CANARY} {CANARY}"}]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Return the file of everything that any logger says, at every level."""
    names = (None, "omai_ray", "deployments", "pipelines")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    path = tmp_path / "everything.log"
    configure_logs("DEBUG", path)
    # Whatever other libraries say is written as plain text, tracebacks included.
    plain = logging.FileHandler(path)
    plain.addFilter(lambda record: record.name != "httpx")  # the test's own client
    logging.getLogger().handlers = [plain]
    logging.getLogger().setLevel(logging.DEBUG)
    yield path
    plain.close()
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def read(path: Path) -> str:
    """Return a file's text."""
    return path.read_text(encoding="utf-8")


@pytest.mark.fault(20)
async def test_no_log_has_a_prompt_a_key_a_password_or_an_exceptions_text(
    api: Api, log: Path
) -> None:
    """Successes, refusals, failures before and in the stream, disconnects, logins."""
    _, key = await api.key("basic")
    headers = bearer(key)
    _, other = keys.generate()
    await api.admin.users.create("ann", f"{CANARY} password", tier="basic")
    bodies: list[dict[str, Any]] = [
        {"messages": PROMPT},
        {"messages": PROMPT, "stream": True},
        {"messages": PROMPT, "n": 0},
        {"messages": [{"role": CANARY, "content": CANARY}]},
        {"messages": [{"role": "user", "content": CANARY * 1000}], "max_tokens": ...},
        {"messages": PROMPT, "model": CANARY},
        {"messages": PROMPT, CANARY: CANARY},
        {"messages": PROMPT, "logit_bias": {CANARY: 1}},
    ]
    for body in bodies:
        await api.complete(headers, **body)
    for after in (0, 1):
        api.chat.failure = (after, RuntimeError(CANARY))
        for stream in (False, True):
            await api.complete(
                headers, messages=PROMPT, stream=stream, temperature=1.5, max_tokens=60
            )
    await api.client.get("/readyz")
    api.chat.failure = None
    for given in (CANARY, [CANARY, ""], {CANARY: 1}):
        await api.embed(headers, input=given)
    api.embedding.failure = RuntimeError(CANARY)
    await api.embed(headers, input=CANARY)
    await api.embed(bearer(other), input=CANARY)
    await api.embed(bearer(CANARY), input=CANARY)
    await api.client.get(f"/v1/{CANARY}?key={CANARY}", headers=headers)
    await api.client.post("/v1/embeddings", headers=headers, content=CANARY)
    for password in (f"{CANARY} password", CANARY):
        await api.client.post("/v1/auth/login", auth=httpx.BasicAuth("ann", password))
    await api.client.post("/v1/auth/login", json={"username": "ann", "password": CANARY})
    session = api.client.cookies["omai_session"]
    await api.client.post("/v1/auth/logout")
    request = json.dumps(chat_body(messages=PROMPT, stream=True, max_tokens=900)).encode()
    exchange = Exchange(api.app, "/v1/chat/completions", headers, request)
    running = asyncio.create_task(exchange.run())
    await exchange.until_sent(3)
    exchange.left.set()
    await running
    text = read(log)
    assert text.count('"logger":"omai_ray.access"') > 20
    assert "unhandled error" in text
    for secret in (CANARY, key, other, session):
        parsed = keys.parse(secret)
        assert (parsed.secret if parsed else secret) not in text


@pytest.mark.fault(20)
async def test_administration_logs_no_secret(
    api: Api, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords and keys, made, changed and refused; also where the audit log is away."""
    await api.admin.users.create("root", f"{CANARY} root", tier="enterprise", role="admin")
    root = httpx.BasicAuth("root", f"{CANARY} root")
    post = api.client.post
    made = []
    for path, body in (
        ("admin/users", {"name": "ann", "password": f"{CANARY} ann", "tier": "basic"}),
        ("admin/users", {"name": "ann", "password": f"{CANARY} ann", "tier": "basic"}),
        ("admin/users", {"name": "bob", "password": f"{CANARY} bob", "tier": CANARY}),
        ("admin/users/ann", {"password": f"{CANARY} new"}),
        ("admin/users/ann", {"password": CANARY * 200}),
        ("admin/keys", {"account": "ann"}),
        ("account/keys", {}),
        ("account/password", {"current_password": CANARY, "new_password": f"{CANARY} x"}),
        ("account/password", {"current_password": f"{CANARY} root", "new_password": CANARY * 5}),
    ):
        answer = (await post(f"/v1/{path}", auth=root, json=body)).json()
        made += [answer["value"]] if "value" in answer else []
    assert len(made) == 2
    for value in made:
        await api.client.get(f"/v1/admin/keys/{value}", auth=root)
        await api.client.delete(f"/v1/account/keys/{value}", auth=httpx.BasicAuth("ann", CANARY))

    def away(*_: Any) -> Any:
        raise overloaded()

    await api.services.administration.audit.close()
    monkeypatch.setattr(Store, "writing", away)
    await post("/v1/auth/login", auth=httpx.BasicAuth("ann", f"{CANARY} guess"))
    await post("/v1/auth/login", auth=httpx.BasicAuth(CANARY, "ann"))
    await api.client.get("/v1/admin/accounts", headers=bearer(made[0]))
    await api.services.administration.audit.close()
    text = read(log)
    assert "not in the audit log" in text
    assert CANARY not in text
    assert not any(value.split("_")[1] in text for value in made)


@pytest.mark.fault(30)
async def test_the_access_log_is_one_object_a_line_with_the_requests_facts(
    api: Api, log: Path
) -> None:
    """Method, route, status, model, tokens and id; a newline in an id does not get in."""
    account, key = await api.key("basic")
    answer = (await api.complete({**bearer(key), "x-request-id": "mine"})).json()
    exchange = Exchange(api.app, "/v1/nothing", bearer(key))
    exchange.scope["headers"].append((b"x-request-id", b'a\n{"level": "CRITICAL"}'))
    await exchange.run()
    records = [json.loads(line) for line in read(log).splitlines() if line[:1] == "{"]
    first, second = [entry for entry in records if entry["logger"] == "omai_ray.access"]
    assert first["request_id"] == "mine"
    assert first["route"] == "/v1/chat/completions"
    assert (first["method"], first["status"]) == ("POST", 200)
    assert (first["model"], first["account"]) == ("omai-gpt-4", account)
    assert answer["usage"]["prompt_tokens"] == first["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == first["completion_tokens"]
    assert second["status"] == 404
    assert second["request_id"].startswith("req_")
