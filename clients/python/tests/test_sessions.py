from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from omai_stub import HELLO, Answer, Seen, SessionStub, SlowLogin, refusal, settle

import omai

Make = Callable[..., Any]
Log = Callable[..., Any]
LOGIN = "/v1/auth/login"
CHAT = "/v1/chat/completions"
CALLERS = 8


@pytest.fixture
def log_in(make: Make, sessions: SessionStub) -> Log:
    """Make a client that logs in as ada, unless options say otherwise."""

    def log_in(**options: Any) -> Any:
        defaults = {
            "username": "ada",
            "password": sessions.password,
            "base_url": sessions.base_url,
            "max_retries": 0,
        }
        return make(**{**defaults, **options})

    return log_in


async def chat(client: Any) -> Any:
    """Make the usual call."""
    return await settle(client.chat.completions.create(model="m", messages=HELLO))


def cookie_of(seen: Seen) -> str | None:
    """Return the cookies that came with a request."""
    return seen.headers["Cookie"]


async def test_login_waits_for_the_first_call(log_in: Log, sessions: SessionStub) -> None:
    """Then its cookie goes with every call, and the password with none."""
    client = log_in()
    assert [] == sessions.seen
    for _ in range(2):
        await chat(client)
    await settle(client.tokenize(model="m", prompt="text"))
    assert [LOGIN, CHAT, CHAT, "/tokenize"] == [seen.path for seen in sessions.seen]
    (value,) = sessions.live
    assert [f"omai_session={value}"] * 3 == [cookie_of(seen) for seen in sessions.seen[1:]]
    for seen in sessions.seen:
        assert "Authorization" not in seen.headers
        assert (seen.path == LOGIN) == (sessions.password.encode() in seen.body)


async def test_session_that_ended_is_opened_again(log_in: Log, sessions: SessionStub) -> None:
    """The call that found out is repeated, under its idempotency key, and nobody notices."""
    client = log_in()
    await chat(client)
    sessions.live.clear()
    completion = await chat(client)
    assert "Hello!" == completion.choices[0].message.content
    assert [LOGIN, CHAT, CHAT, LOGIN, CHAT] == [seen.path for seen in sessions.seen]
    assert (
        sessions.seen[2].headers["Idempotency-Key"] == sessions.seen[4].headers["Idempotency-Key"]
    )
    assert sessions.seen[2].body == sessions.seen[4].body


async def test_session_is_opened_again_once_only(log_in: Log, sessions: SessionStub) -> None:
    """A 401 right after a login is the answer."""
    client = log_in()
    sessions.queue.extend([refusal(401), refusal(401)])
    with pytest.raises(omai.AuthenticationError):
        await chat(client)
    assert [LOGIN, CHAT, LOGIN, CHAT] == [seen.path for seen in sessions.seen]


async def test_stream_logs_in_as_well(log_in: Log, sessions: SessionStub) -> None:
    """Before its first chunk, and again when the session has ended."""
    client = log_in()
    await chat(client)
    sessions.live.clear()
    chunk = b'data: {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\n'
    headers = {"Content-Type": "text/event-stream"}
    sessions.queue.append(Answer(body=chunk + b"data: [DONE]\n\n", headers=headers))
    stream = await settle(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    chunks = list(stream) if isinstance(client, omai.OMAi) else [chunk async for chunk in stream]
    assert ["Hi"] == [chunk.choices[0].delta.content for chunk in chunks]


async def test_wrong_password_is_an_authentication_error(
    log_in: Log, sessions: SessionStub
) -> None:
    """It is tried once a call, and never shown."""
    client = log_in(password="hunter2hunter2", max_retries=2)
    with pytest.raises(omai.AuthenticationError) as raised:
        await chat(client)
    assert [LOGIN] == [seen.path for seen in sessions.seen]
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("status", [429, 503])
async def test_login_is_retried_by_the_same_rules(
    log_in: Log, sessions: SessionStub, waits: list[float], status: int
) -> None:
    """After too many attempts, or while the server is away, it waits as it is told."""
    sessions.login_answers.append(refusal(status, {"retry-after-ms": "130"}))
    await chat(log_in(max_retries=2))
    assert [0.13] == waits
    assert [LOGIN, LOGIN, CHAT] == [seen.path for seen in sessions.seen]


async def test_login_without_a_cookie_is_refused(log_in: Log, sessions: SessionStub) -> None:
    """Some other server is there."""
    sessions.login_answers.append(Answer(body={}))
    with pytest.raises(omai.CredentialsError, match="without a session cookie"):
        await chat(log_in())


async def test_login_is_not_redirected(log_in: Log, sessions: SessionStub) -> None:
    """A password goes where its owner said, and nowhere else."""
    target = sessions.base_url.replace("127.0.0.1", "localhost") + "/elsewhere"
    sessions.login_answers.append(Answer(307, b"", {"Location": target}))
    with pytest.raises(omai.APIStatusError):
        await chat(log_in())
    assert [LOGIN] == [seen.path for seen in sessions.seen]


async def test_secure_cookie_is_kept_by_the_client(log_in: Log, sessions: SessionStub) -> None:
    """A proxy may end TLS in front of a server that is also called without."""
    sessions.live.add("value")
    header = {"Set-Cookie": "omai_session=value; Path=/; HttpOnly; Secure"}
    sessions.login_answers.append(Answer(body={}, headers=header))
    await chat(log_in())
    assert "omai_session=value" == cookie_of(sessions.seen[1])


async def test_copies_share_the_session(log_in: Log, sessions: SessionStub) -> None:
    """Whichever of them opens it."""
    client = log_in()
    copy = client.with_options(timeout=5)
    for each in (copy, client, copy.copy(max_retries=1)):
        await chat(each)
    assert 1 == sessions.count(LOGIN)


async def test_copy_with_a_key_leaves_the_session(log_in: Log, sessions: SessionStub) -> None:
    """Though they share connections: a server would let the cookie win over the key."""
    client = log_in()
    await chat(client)
    await chat(client.with_options(api_key="k"))
    seen = sessions.seen[-1]
    assert ("Bearer k", None) == (seen.headers["Authorization"], cookie_of(seen))
    back = client.with_options(api_key="k").with_options(username="ada", password=sessions.password)
    await chat(back)
    assert "Authorization" not in sessions.seen[-1].headers
    assert 2 == sessions.count(LOGIN)


async def test_copy_for_another_server_has_a_session_of_its_own(
    log_in: Log, sessions: SessionStub
) -> None:
    """A cookie is for the server that gave it."""
    client = log_in()
    await chat(client)
    await chat(client.with_options(base_url=sessions.base_url.replace("127.0.0.1", "localhost")))
    assert [LOGIN, CHAT, LOGIN, CHAT] == [seen.path for seen in sessions.seen]
    assert 2 == len({cookie_of(seen) for seen in sessions.seen if seen.path == CHAT})


async def test_cookie_is_not_sent_elsewhere(log_in: Log, sessions: SessionStub) -> None:
    """A call by a whole URL may go to another host."""
    client = log_in()
    await chat(client)
    url = sessions.base_url.replace("127.0.0.1", "localhost") + "/models"
    with pytest.raises(omai.AuthenticationError):
        await settle(client.get(url, cast_to=object))
    assert cookie_of(sessions.seen[-1]) is None
    assert 1 == sessions.count(LOGIN)


async def test_other_cookies_stay(log_in: Log, sessions: SessionStub) -> None:
    """A proxy may need them."""
    client = log_in(default_headers={"Cookie": "route=7; omai_session=old"})
    sessions.live.add("value")
    header = {"Set-Cookie": "omai_session=value; Path=/"}
    sessions.login_answers.append(Answer(body={}, headers=header))
    await chat(client)
    assert ["route=7", "route=7; omai_session=value"] == [cookie_of(s) for s in sessions.seen]


async def test_logout_ends_the_session(log_in: Log, sessions: SessionStub) -> None:
    """A later call opens another; a second logout, or one before any login, has nothing to do."""
    client = log_in()
    await settle(client.logout())
    assert [] == sessions.seen
    await chat(client)
    for _ in range(2):
        await settle(client.logout())
    assert not sessions.live
    assert 1 == sessions.count("/v1/auth/logout")
    await chat(client)
    assert 2 == sessions.count(LOGIN)


async def test_logout_of_an_ended_session_does_not_log_in(
    log_in: Log, sessions: SessionStub
) -> None:
    """It is what was wanted."""
    client = log_in()
    await chat(client)
    sessions.live.clear()
    await settle(client.logout())
    assert 1 == sessions.count(LOGIN)


async def test_client_with_a_key_has_no_logout(make: Make) -> None:
    """There is no session to end."""
    client = make(api_key="k")
    with pytest.raises(omai.CredentialsError, match="Only a client with username"):
        await settle(client.logout())


@pytest.mark.parametrize("dead", [False, True])
async def test_upload_that_cannot_be_repeated_finds_a_live_session(
    log_in: Log, sessions: SessionStub, dead: bool
) -> None:
    """A pipe is read once: sent again after a 401 it would be an empty file."""

    class Pipe(io.RawIOBase):
        left = b"some lines"

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            found, self.left = self.left, b""
            return found

    client = log_in()
    await chat(client)
    if dead:
        sessions.live.clear()
    await settle(client.files.create(file=("lines.jsonl", Pipe()), purpose="batch"))
    uploads = [seen for seen in sessions.seen if seen.path == "/v1/files"]
    assert [True] == [b"some lines" in seen.body for seen in uploads]
    assert 1 + dead == sessions.count(LOGIN)


class CrowdedLock:
    """A lock, for threads or tasks, that is had only when so many have come for it."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.crowd = threading.Semaphore(0)
        self.crowded = asyncio.Event()
        self.come = 0

    def __enter__(self) -> None:
        self.crowd.release()
        self.lock.acquire()
        while self.come < CALLERS:
            assert self.crowd.acquire(timeout=30)
            self.come += 1

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    async def __aenter__(self) -> None:
        self.come += 1
        if self.come == CALLERS:
            self.crowded.set()
        await self.lock.acquire()
        await self.crowded.wait()

    async def __aexit__(self, *_: object) -> None:
        self.lock.release()


def crowd(client: Any) -> None:
    """Have all callers wait for a login before it begins."""
    client._session.lock = CrowdedLock(client._session.lock)


@pytest.mark.parametrize("right", [True, False])
def test_threads_that_need_a_session_log_in_once(sessions: SessionStub, right: bool) -> None:
    """And share what comes of it, so that a wrong password is not tried by each of them."""
    password = sessions.password if right else "wrong"
    client = omai.OMAi(username="ada", password=password, base_url=sessions.base_url)
    crowd(client)

    def call(_: int) -> str:
        try:
            return type(client.chat.completions.create(model="m", messages=HELLO)).__name__
        except omai.OMAiError as error:
            return type(error).__name__

    with client, ThreadPoolExecutor(CALLERS) as pool:
        results = list(pool.map(call, range(CALLERS)))
    assert ["ChatCompletion" if right else "AuthenticationError"] * CALLERS == results
    assert 1 == sessions.count(LOGIN)


@pytest.mark.parametrize("right", [True, False])
async def test_tasks_that_need_a_session_log_in_once(sessions: SessionStub, right: bool) -> None:
    """As threads do."""
    password = sessions.password if right else "wrong"
    async with omai.AsyncOMAi(
        username="ada", password=password, base_url=sessions.base_url
    ) as client:
        crowd(client)
        calls = [chat(client) for _ in range(CALLERS)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    expected = "ChatCompletion" if right else "AuthenticationError"
    assert [expected] * CALLERS == [type(result).__name__ for result in results]
    assert 1 == sessions.count(LOGIN)


async def test_server_that_is_away_is_tried_once_for_all_who_wait() -> None:
    """So that the last of many does not wait for the timeouts of all."""
    async with omai.AsyncOMAi(
        username="ada", password="secret", base_url="http://127.0.0.1:9/v1", max_retries=0
    ) as client:
        crowd(client)
        calls = [chat(client) for _ in range(CALLERS)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert client._session is not None
        assert 1 == client._session.attempts
    assert [omai.APIConnectionError] * CALLERS == [type(result) for result in results]


async def test_cancelled_login_leaves_the_next_one_free(slow_login: SlowLogin) -> None:
    """Nobody waits for it for ever."""
    async with omai.AsyncOMAi(
        username="ada", password=slow_login.password, base_url=slow_login.base_url
    ) as client:
        first = asyncio.create_task(chat(client))
        await asyncio.to_thread(slow_login.asked.wait, 30)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        slow_login.go.set()
        assert "Hello!" == (await chat(client)).choices[0].message.content


async def test_http_client_may_be_given(
    log_in: Log, client_class: type[Any], sessions: SessionStub
) -> None:
    """Also one of the httpx that openai used before its version 3; its own cookies stay."""
    httpx = pytest.importorskip("httpx")
    name = "AsyncClient" if client_class is omai.AsyncOMAi else "Client"
    client = log_in(http_client=getattr(httpx, name)(cookies={"route": "7"}))
    await chat(client)
    sessions.live.clear()
    await chat(client)
    assert [LOGIN, CHAT, CHAT, LOGIN, CHAT] == [seen.path for seen in sessions.seen]
    for seen in sessions.seen:
        names = [pair.partition("=")[0] for pair in (cookie_of(seen) or "").split("; ")]
        assert ["route"] + ["omai_session"] * (seen.path == CHAT) == names


def test_async_client_may_be_made_outside_of_a_loop(sessions: SessionStub) -> None:
    """As a module's global often is; asyncio and trio are alike to it."""
    client = omai.AsyncOMAi(username="ada", password=sessions.password, base_url=sessions.base_url)

    async def use() -> str:
        async with client:
            return str((await chat(client)).choices[0].message.content)

    assert "Hello!" == anyio.run(use)


@pytest.mark.parametrize("login", [True, False])
async def test_secrets_are_in_no_log_and_no_repr(
    make: Make, sessions: SessionStub, caplog: pytest.LogCaptureFixture, login: bool
) -> None:
    """Of openai's and the HTTP library's loggers at their most talkative."""
    caplog.set_level(logging.DEBUG)
    key = "some-secret-key"
    credentials = {"username": "ada", "password": sessions.password} if login else {"api_key": key}
    client = make(base_url=sessions.base_url, max_retries=1, **credentials)
    sessions.queue.append(refusal(503, {"retry-after-ms": "1"}))
    await chat(client)
    sessions.live.clear()
    await chat(client)
    sessions.queue.append(refusal(400))
    with pytest.raises(omai.BadRequestError) as raised:
        await chat(client)
    if login:
        await settle(client.logout())
    assert "openai._base_client" in {record.name for record in caplog.records}
    assert {"httpx2", "httpx"} & {record.name for record in caplog.records}
    shown = f"{caplog.text} {client!r} {client._session!r} {raised.value!r}"
    assert key not in shown
    assert sessions.password not in shown
    if client._session is not None:
        assert sessions.password not in repr(client._session.login)


async def test_nothing_but_the_session_keeps_its_cookie(log_in: Log, sessions: SessionStub) -> None:
    """An HTTP client's own jar would send it to other ports of the host, after a redirect."""
    client = log_in()
    await chat(client)
    assert [] == [cookie.name for cookie in client._client.cookies.jar]


async def test_refused_login_holds_no_password(log_in: Log) -> None:
    """The error speaks of the caller's own request."""
    client = log_in(password="wrong-battery")
    with pytest.raises(omai.AuthenticationError) as caught:
        await chat(client)
    assert caught.value.request.url.path == CHAT
    assert b"wrong-battery" not in caught.value.request.content
