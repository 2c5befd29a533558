"""Where clients of other languages and library versions are installed, and how they are run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.clients.conftest import Live
from tests.programs import lacking, require_program

_ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
JAVASCRIPT_SDK = _ROOT / "clients" / "javascript"
# What some frameworks would otherwise fetch, or send, over the network.
_QUIET = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
}
_LIMIT_S = 150.0


def clients_environment() -> Path:
    """Return the folder of commands of the clients' environment; skip where there is none."""
    commands = _ROOT / ".venv-clients" / "bin"
    if not (commands / "python").exists():
        lacking(f"{commands.parent.name} is absent: make clients-setup")
    return commands


def run_client(live: Live, home: Path, *command: str | Path) -> str:
    """Run a command of the clients' environment as a user of the server; return what it prints."""
    commands = clients_environment()
    environment = {"PATH": str(commands), "HOME": str(home), **_QUIET}
    return _printed(live, environment, home, commands / command[0], *command[1:])


def require_package(name: str) -> None:
    """Skip where a package is absent that the JavaScript SDK depends on."""
    if not (JAVASCRIPT_SDK / "node_modules" / name).is_dir():
        lacking(f"{name} is not installed: npm ci --prefix clients/javascript")


def run_node(live: Live, program: str, *arguments: str) -> Any:
    """Run a program, told where packages are, as a user of the server; return the JSON it prints.

    A package is to be required (`require_package`) before.
    """
    require_program("node", package="nodejs")
    environment = {"PATH": os.environ["PATH"]}
    command: list[str | Path] = ["node", PROGRAMS / program, JAVASCRIPT_SDK, *arguments]
    return json.loads(_printed(live, environment, PROGRAMS, *command))


def _printed(live: Live, environment: dict[str, str], folder: Path, *command: str | Path) -> str:
    done = subprocess.run(
        command,
        env={"OPENAI_BASE_URL": live.base_url, "OPENAI_API_KEY": live.key, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
