"""The application behind a real HTTP server on loopback, for clients as their users have them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn

from omai_ray.engines.embedding.engine import EmbeddingEngine
from tests.api.conftest import Api, chat_checkpoint, embedder, running
from tests.programs import free_port

__all__ = ["chat_checkpoint", "embedder"]

Result = TypeVar("Result")
USERNAME, PASSWORD = "ada", "correct horse battery"
_START_S = 30.0


@dataclass(frozen=True)
class Live:
    """A server that answers at `url` (without /v1) to `key`, and to a user's name and password."""

    url: str
    key: str
    username: str
    password: str
    api: Api
    _loop: asyncio.AbstractEventLoop

    @property
    def base_url(self) -> str:
        """What SDKs are given."""
        return f"{self.url}/v1"

    def run(self, use: Callable[[Api], Coroutine[Any, Any, Result]]) -> Result:
        """Use what is behind the server, on its own loop."""
        return asyncio.run_coroutine_threadsafe(use(self.api), self._loop).result(_START_S)

    def new_key(self, tier: str) -> str:
        """Return the key of a new account."""

        async def create(api: Api) -> str:
            return (await api.key(tier))[1]

        return self.run(create)


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@pytest.fixture(scope="session")
def live(
    tmp_path_factory: pytest.TempPathFactory, chat_checkpoint: Path, embedder: EmbeddingEngine
) -> Iterator[Live]:
    """Serve two small models for the session."""
    state_dir = tmp_path_factory.mktemp("live")
    began, stop = threading.Event(), threading.Event()
    found: list[Live] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        async with running(state_dir, chat_checkpoint, embedder) as api:
            _, key = await api.key()
            account = await api.admin.accounts.create("ada", "enterprise")
            await api.admin.users.create(USERNAME, PASSWORD, account=account.id)
            port = free_port()
            # h11, as the edge has Serve's proxy do.
            config = uvicorn.Config(
                api.app, host="127.0.0.1", port=port, log_level="warning", http="h11"
            )
            server = _Server(config)
            serving = asyncio.create_task(server.serve())
            await server.listens.wait()
            loop = asyncio.get_running_loop()
            url = f"http://127.0.0.1:{port}"
            found.append(Live(url, key, USERNAME, PASSWORD, api, loop))
            began.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await serving

    def thread() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            began.set()

    running_thread = threading.Thread(target=thread)
    running_thread.start()
    assert began.wait(_START_S)
    if failed:
        raise failed[0]
    yield found[0]
    stop.set()
    running_thread.join(_START_S)
    if failed:
        raise failed[0]
