"""One local Ray for all of these tests, and the application served on it once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import ray
from ray import serve
from ray.serve.config import ProxyLocation

from deployments.app import build
from deployments.platform import proxy_environment
from omai_ray.catalog import ModelSpec, Replicas
from omai_ray.identity.administration import Administration
from omai_ray.identity.registry import Registry
from omai_ray.ledger import UsageLedger
from omai_ray.settings import BatchSettings, EmbeddingJobSettings, IngressSettings, Settings
from tests.checkpoints import save_chat_checkpoint, save_embedding_checkpoint
from tests.programs import free_port

Result = TypeVar("Result")
INGRESS = IngressSettings(replicas=2, num_cpus=0.1)
OWN_CHAT, OWN_EMBEDDING = "own-chat", "own-embedding"  # what only batches ask for
NONE = Replicas(min=0)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Run one local Ray for the session."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # a busy machine must not starve the tests
    os.environ |= proxy_environment(Settings(ingress=INGRESS))
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a chat and an embedding checkpoint with random weights."""
    root = tmp_path_factory.mktemp("models")
    return (
        save_chat_checkpoint(root / "chat", context=2048),
        save_embedding_checkpoint(root / "embedding"),
    )


@dataclass(frozen=True)
class Served:
    """The running application."""

    url: str
    settings: Settings

    def with_registry(self, use: Callable[[Registry], Coroutine[Any, Any, Result]]) -> Result:
        """Use the server's database from this process."""

        async def run() -> Result:
            registry = await Registry.open(self.settings)
            try:
                return await use(registry)
            finally:
                await registry.close()

        return asyncio.run(run())

    def create_key(self, tier: str = "enterprise") -> tuple[str, str]:
        """Return a new account's id and its key."""

        async def create(registry: Registry) -> tuple[str, str]:
            admin = Administration(registry)
            account = await admin.accounts.create(None, tier)
            _, key = await admin.keys.create(account.id)
            return account.id, key

        return self.with_registry(create)

    def revoke(self, key: str) -> None:
        """Revoke a key."""

        async def run(registry: Registry) -> None:
            await Administration(registry).keys.revoke(key)

        self.with_registry(run)

    def records(self, account_id: str) -> list[dict[str, Any]]:
        """Return an account's usage records."""

        async def read(registry: Registry) -> list[dict[str, Any]]:
            exported = UsageLedger(registry.store).export(account_id)
            return [record async for records in exported for record in records]

        return self.with_registry(read)

    def requests_recorded(self, account_id: str) -> int:
        """Return how many requests of an account the ledger has."""

        async def count(registry: Registry) -> int:
            return (await UsageLedger(registry.store).totals(account_id)).requests

        return self.with_registry(count)

    def client(self, key: str) -> httpx.Client:
        """Return an HTTP client that sends a key."""
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30
        )


@pytest.fixture(scope="session")
def served(
    ray_cluster: None, tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Serve two small models behind two ingress replicas."""
    chat, embedding = tiny_models
    state_dir = tmp_path_factory.mktemp("state")
    settings = Settings(
        port=free_port(),
        state_dir=state_dir,
        log_file=state_dir / "omai.log",
        ingress=INGRESS,
        batches=BatchSettings(backends=dict.fromkeys((OWN_CHAT, OWN_EMBEDDING), "own"), idle_s=600),
        embedding_jobs=EmbeddingJobSettings(locations=(f"{state_dir}/corpora/{{account}}",)),
        models=(
            ModelSpec(name="omai-gpt-4", task="chat", source=str(chat), num_cpus=0.2),
            ModelSpec(
                name="text-embedding-ada-002", task="embedding", source=str(embedding), num_cpus=0.2
            ),
            ModelSpec(name=OWN_CHAT, task="chat", source=str(chat), replicas=NONE),
            ModelSpec(name=OWN_EMBEDDING, task="embedding", source=str(embedding), replicas=NONE),
        ),
    )
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options={"host": "127.0.0.1", "port": settings.port},
    )
    serve.run(build(settings), name="omai")
    yield Served(f"http://127.0.0.1:{settings.port}", settings)
    serve.shutdown()  # type: ignore[no-untyped-call]
