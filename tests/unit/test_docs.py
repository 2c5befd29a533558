"""What docs and README show is right, as far as it can be told without a server.

tests/ray/test_docs.py runs the programs among them.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from deployments.checks import check_files
from omai_ray.cli import build_parser
from omai_ray.identity.peppers import Peppers
from tests.snippets import LISTINGS, NOT_RUN, PROGRAMS, ROOT, Snippet, snippets


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """A program, settings or JSON; else it is a listing, and named."""
    kinds = {*PROGRAMS, "yaml", "json"}
    others = {snippet.key for snippet in snippets() if snippet.language not in kinds}
    assert others == LISTINGS


def test_what_is_not_run_is_still_there() -> None:
    """A reason outlives no block."""
    assert {key for key in NOT_RUN if key not in {s.key for s in snippets(*PROGRAMS)}} == set()


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=str)
def test_settings_are_found_in_order(snippet: Snippet, tmp_path: Path) -> None:
    """By `omai-ray check`."""
    path = tmp_path / "platform.yaml"
    path.write_text(snippet.text, encoding="utf-8")
    assert check_files([path]) == []


@pytest.mark.parametrize("snippet", snippets("json"), ids=str)
def test_json_can_be_read(snippet: Snippet) -> None:
    """As it stands."""
    assert isinstance(json.loads(snippet.text), dict)


@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_python_can_be_compiled(snippet: Snippet) -> None:
    """And imports what it uses."""
    tree = ast.parse(snippet.text)
    assert any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)


@pytest.mark.parametrize("snippet", snippets("bash"), ids=str)
def test_commands_are_known(snippet: Snippet) -> None:
    """Bash can read them, and the command line has each subcommand and option, run or not."""
    subprocess.run(["bash", "-n"], input=snippet.text, text=True, check=True, timeout=60)
    for words in commands(snippet.text):
        build_parser().parse_args(words)


def commands(script: str) -> list[list[str]]:
    """Return the arguments of each `omai-ray` in a script of simple commands."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        if "omai-ray" not in line:
            continue  # it may be a part of a quotation
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] | None = None
        for token in lexer:
            if token.endswith("omai-ray"):
                words = []
                found.append(words)
            elif set(token) <= set("();<>|&"):
                words = None
            elif words is not None:
                words.append(token)
    return found


def test_commands_in_a_script_are_found() -> None:
    """In substitutions and pipes, over two lines, and without what follows."""
    script = """A=$(omai-ray keys list)   # omai-ray no
echo x | .venv/bin/omai-ray check \\
  "a b" > c
"""
    assert commands(script) == [["keys", "list"], ["check", "a b"]]


def test_files_that_commands_name_are_there() -> None:
    """Of this repository: what examples and checks are given."""
    named = set()
    for snippet in snippets("bash"):
        named |= set(
            re.findall(r"\b(?:examples|deployments|scripts|benchmarks)/[\w./-]+", snippet.text)
        )
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert "examples/search.py" in named


def test_the_pepper_file_of_the_docs_can_be_read(tmp_path: Path) -> None:
    """What the documented command writes, with some hex for what openssl prints."""
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`(echo [^`]* > pepper)`", page)
    script = f"openssl() {{ echo {'5e' * 32}; }}\n{command}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=60)

    peppers = Peppers.load(tmp_path / "pepper")
    assert (1, b"\x5e" * 32) == (peppers.version, peppers.current)
