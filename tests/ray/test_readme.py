"""The README's examples, run as pasted against a running server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from omai_ray.identity.administration import Administration
from omai_ray.identity.registry import Registry
from tests.programs import require_program
from tests.ray.conftest import Served

README = Path(__file__).parents[2] / "README.md"


def snippets(language: str) -> list[str]:
    """Return the README's blocks of a language that call the API."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if "127.0.0.1:8000" in block and "omai-ray" not in block]


def run(command: list[str], served: Served, tmp_path: Path) -> str:
    """Run a command with a key in its environment, and return what it prints."""
    _, key = served.create_key("pro")
    environment = os.environ | {"OMAI_API_KEY": key}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pasted(snippet: str, served: Served) -> str:
    """Return the snippet with the address of this server."""
    return snippet.replace("http://127.0.0.1:8000", served.url)


def test_the_curl_example_works_as_pasted(served: Served, tmp_path: Path) -> None:
    """It prints a chat completion."""
    require_program("curl", package="curl")
    (snippet,) = snippets("bash")
    assert '"object":"chat.completion"' in run(
        ["bash", "-c", pasted(snippet, served)], served, tmp_path
    )


def test_the_javascript_example_works_as_pasted(served: Served, tmp_path: Path) -> None:
    """It prints the answer's text and fails at nothing."""
    require_program("node", package="nodejs")
    (snippet,) = snippets("javascript")
    script = tmp_path / "chat.mjs"
    script.write_text(pasted(snippet, served), encoding="utf-8")
    assert "undefined" not in run(["node", str(script)], served, tmp_path)


def test_the_python_examples_work_as_pasted(served: Served, tmp_path: Path) -> None:
    """The SDK prints an answer and a vector's size; the session lists the models."""

    async def create_user(registry: Registry) -> None:
        await Administration(registry).users.create("ada", "correct horse battery", tier="pro")

    served.with_registry(create_user)
    sdk, session = snippets("python")
    client_output = run([sys.executable, "-c", pasted(sdk, served)], served, tmp_path)
    assert client_output.endswith("32 dimensions\n")
    session_output = run([sys.executable, "-c", pasted(session, served)], served, tmp_path)
    assert session_output == "['omai-gpt-4', 'text-embedding-ada-002']\n"
