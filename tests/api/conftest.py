"""The ASGI application over real small engines, in this process: no Ray, no server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.types import ASGIApp, Message, Scope

from omai_ray.api.app import Services, create_app
from omai_ray.api.backends import ServedChat, ServedEmbedding, ServedModels
from omai_ray.batches.batches import Batches
from omai_ray.catalog import Catalog, ModelSpec
from omai_ray.embedding_jobs.jobs import EmbeddingJobs
from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.engines.embedding.batcher import EmbeddingBatcher
from omai_ray.engines.embedding.engine import EmbeddingEngine, Vectors
from omai_ray.files import Contents, Files
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.registry import Registry
from omai_ray.ledger import UsageLedger
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.quota.gate import Gate
from omai_ray.settings import (
    DEFAULT_TIERS,
    FileSettings,
    IngressSettings,
    SessionSettings,
    Settings,
)
from omai_ray.telemetry.recorder import Recorder
from omai_ray.text.chat_template import ChatTokenizer
from tests.checkpoints import save_chat_checkpoint, save_embedding_checkpoint

MAX_BODY_BYTES = 100_000
FILE_LIMITS = FileSettings(max_bytes=3_000_000, max_batch_bytes=2_000_000)
CONTEXT = 2048
CHAT = "omai-gpt-4"
EMBEDDING = "text-embedding-ada-002"
HELLO = [{"role": "user", "content": "Hello, how are you?"}]
Headers = dict[str, str]


class EngineChat:
    """A chat backend in this process.

    `failure` is raised in place of the delta at that index, and of any whole answer.
    """

    def __init__(self, generator: ChatGenerator) -> None:
        self._generator = generator
        self.failure: tuple[int, Exception] | None = None
        self.running = 0
        self.opened = asyncio.Event()

    async def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        with self._counting():
            index = 0
            async for deltas in self._generator.stream(job):
                if self.failure is not None and index == self.failure[0]:
                    raise self.failure[1]
                index += 1
                yield deltas

    async def answer(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        with self._counting():
            if self.failure is not None:
                raise self.failure[1]
            await self._generator.answer(job, choices)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        self.running += 1
        self.opened.set()
        try:
            yield
        finally:
            self.running -= 1

    async def ready(self) -> None:
        if self.failure is not None:
            raise self.failure[1]


class EngineEmbedding:
    """An embedding backend in this process."""

    def __init__(self, batcher: EmbeddingBatcher) -> None:
        self._batcher = batcher
        self.failure: Exception | None = None

    async def embed(self, inputs: Sequence[Sequence[int]], account: str) -> Vectors:
        if self.failure is not None:
            raise self.failure
        return await self._batcher.embed(inputs, account)

    async def ready(self) -> None:
        if self.failure is not None:
            raise self.failure
        self._batcher.check_health()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Api:
    """A running application and what is behind it."""

    app: ASGIApp
    client: httpx.AsyncClient
    admin: Administration
    ledger: UsageLedger
    buckets: InProcessBuckets
    chat: EngineChat
    clock: Clock
    embedder: EmbeddingEngine
    embedding: EngineEmbedding
    tokenizer: ChatTokenizer
    services: Services
    files: Files
    wall: Clock
    _headers: dict[str, str] = field(default_factory=dict)

    async def key(self, tier: str = "enterprise", name: str | None = None) -> tuple[str, str]:
        """Create an account and return its id and a key."""
        account = await self.admin.accounts.create(name, tier)
        _, key = await self.admin.keys.create(account.id)
        return account.id, key

    async def headers(self, tier: str = "enterprise") -> dict[str, str]:
        """Return the headers of a new account; those of the enterprise tier are made once."""
        if tier == "enterprise" and self._headers:
            return dict(self._headers)
        _, key = await self.key(tier)
        if tier == "enterprise":
            self._headers = bearer(key)
        return bearer(key)

    async def complete(self, headers: dict[str, str], **fields: Any) -> httpx.Response:
        """Ask for a chat completion: a short greedy one, unless fields say otherwise."""
        return await self.client.post(
            "/v1/chat/completions", headers=headers, json=chat_body(**fields)
        )

    async def embed(self, headers: dict[str, str], **fields: Any) -> httpx.Response:
        """Ask for embeddings of one sentence, unless fields say otherwise."""
        body = {"model": EMBEDDING, "input": "The quick brown fox", **fields}
        return await self.client.post("/v1/embeddings", headers=headers, json=body)


def bearer(key: str) -> Headers:
    """Return the headers of a key."""
    return {"Authorization": f"Bearer {key}"}


def chat_body(**fields: Any) -> dict[str, Any]:
    """Return a small chat request; a field given as ... is left out."""
    body = {"model": CHAT, "messages": HELLO, "temperature": 0, "max_tokens": 12, **fields}
    return {name: value for name, value in body.items() if value is not ...}


def events(text: str) -> list[Any]:
    """Return what a stream's events hold, `[DONE]` as that text."""
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    values = [line.removeprefix("data: ") for line in lines]
    return [value if value == "[DONE]" else json.loads(value) for value in values]


class Exchange:
    """One request put to the application without a server, whose client may leave at any time."""

    def __init__(self, app: ASGIApp, path: str, headers: dict[str, str], *bodies: bytes) -> None:
        self._app = app
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "client": ("127.0.0.1", 1234),
            "server": ("test", 80),
            "headers": [(b"host", b"test")]
            + [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        self.bodies = list(bodies)
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        self.blocked: asyncio.Event | None = None
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Serve the request."""
        await self._app(self.scope, self._receive, self._send)

    async def until_sent(self, messages: int) -> None:
        """Return once so many messages were sent."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.sent) >= messages)

    @property
    def status(self) -> int:
        """The response's status."""
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        """What was sent of the response's body."""
        return b"".join(message.get("body", b"") for message in self.sent)

    async def _receive(self) -> Message:
        if self.bodies:
            body = self.bodies.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self.bodies)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        async with self._news:
            self.sent.append(message)
            self._news.notify_all()
        if self.blocked is not None:
            await self.blocked.wait()


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random chat model."""
    return save_chat_checkpoint(tmp_path_factory.mktemp("chat"), context=CONTEXT)


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingEngine:
    """Return a small random embedding model, loaded."""
    directory = save_embedding_checkpoint(tmp_path_factory.mktemp("embedding"))
    spec = ModelSpec(name="emb", task="embedding", source=str(directory), dtype="float32")
    return EmbeddingEngine(spec)


@pytest.fixture
async def api(
    tmp_path: Path, chat_checkpoint: Path, embedder: EmbeddingEngine
) -> AsyncIterator[Api]:
    """Return an application of the test's own, with one chat and one embedding model."""
    async with running(tmp_path, chat_checkpoint, embedder) as api:
        yield api


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_api(
    tmp_path_factory: pytest.TempPathFactory, chat_checkpoint: Path, embedder: EmbeddingEngine
) -> AsyncIterator[Api]:
    """Return one application for all tests that only ask it."""
    async with running(tmp_path_factory.mktemp("shared"), chat_checkpoint, embedder) as api:
        yield api


@pytest_asyncio.fixture(loop_scope="session")
async def owner(shared_api: Api) -> tuple[str, Headers]:
    """Return an account of the test's own in the shared application, and its headers."""
    account, key = await shared_api.key("basic")
    return account, bearer(key)


@asynccontextmanager
async def running(
    state_dir: Path, chat_checkpoint: Path, embedder: EmbeddingEngine
) -> AsyncIterator[Api]:
    """Run an application with one chat and one embedding model."""
    chat_spec = ModelSpec(name=CHAT, task="chat", source=str(chat_checkpoint))
    embedding_spec = ModelSpec(name=EMBEDDING, task="embedding", source="unused")
    engine = BatchingEngine(chat_spec)
    engine.start()
    tokenizer = ChatTokenizer(chat_checkpoint)
    chat = EngineChat(ChatGenerator(engine, tokenizer.text))
    embedding = EngineEmbedding(EmbeddingBatcher(embedder, max_queued=8))
    models = ServedModels(
        Catalog((chat_spec, embedding_spec), {"gpt-4o-mini": "omai-gpt-4"}),
        {"omai-gpt-4": ServedChat(chat_spec, tokenizer, chat, 1)},
        {
            "text-embedding-ada-002": ServedEmbedding(
                embedding_spec, embedder.tokenizer, embedding, 2
            )
        },
    )
    registry = await Registry.open(
        Settings(
            state_dir=state_dir,
            models=(chat_spec, embedding_spec),
            aliases={"gpt-4o-mini": "omai-gpt-4"},
        )
    )
    clock = Clock()
    buckets = InProcessBuckets(clock)
    ledger = UsageLedger(registry.store)
    authenticator = Authenticator(registry)
    admin = Administration(registry)
    contents = Contents.at(str(state_dir / "files"))
    wall = Clock(time.time())
    files = Files(registry.store, contents, wall)

    async def nothing() -> None:
        pass

    services = Services(
        models=models,
        gate=Gate(buckets, DEFAULT_TIERS, MonthlyBudgets(ledger.tokens_in_month)),
        ledger=ledger,
        authenticator=authenticator,
        administration=admin,
        tiers=DEFAULT_TIERS,
        sessions=SessionSettings(),
        files=files,
        batches=Batches(registry.store, files, wall),
        embedding_jobs=EmbeddingJobs(
            registry.store,
            files,
            AllowedLocations([f"{state_dir}/corpora/{{account}}", "s3://allowed/some/prefix"]),
            wall,
        ),
        file_limits=FILE_LIMITS,
        ingress=IngressSettings(max_body_bytes=MAX_BODY_BYTES, cors_origins=("*",)),
        trusted_proxies=(),
        proxy_echoes_id=False,
        recorder=Recorder(),
        close=nothing,
    )
    app = create_app(services)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Api(
            app,
            client,
            admin,
            ledger,
            buckets,
            chat,
            clock,
            embedder,
            embedding,
            tokenizer,
            services,
            files,
            wall,
        )
    await engine.drain()
    await authenticator.close()
    await ledger.close()
    await registry.close()
    contents.close()
