"""Which part of the repository may import which: architecture, kept by reading every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ("omai_ray", "deployments", "pipelines", "clients")
HEAVY = ("torch", "ray", "transformers")
_KEPT = ("identity", "quota", "ledger", "store", "files", "batches", "embedding_jobs")
STATE = tuple(f"omai_ray.{part}" for part in _KEPT)

# Of this repository, nothing but what is named; where a prefix is missing, all is allowed.
ALLOWED = {
    "omai_ray.errors": (),
    "omai_ray.tasks": (),
    "omai_ray.priority": (),
    "omai_ray.catalog": ("omai_ray.errors",),
    "omai_ray.secret_literals": (),
    "omai_ray.spelling": (),
    "omai_ray.unknown_keys": (),
    "omai_ray.garbage": (),
    "omai_ray.leaving": ("omai_ray.errors",),
    "omai_ray.storage": ("omai_ray.errors",),
    "omai_ray.settings": (
        "omai_ray.errors",
        "omai_ray.catalog",
        "omai_ray.secret_literals",
        "omai_ray.spelling",
        "omai_ray.unknown_keys",
    ),
    "omai_ray.telemetry": ("omai_ray.telemetry",),
    "omai_ray.autoscaling": ("omai_ray.autoscaling", "omai_ray.priority"),
    "omai_ray.text": ("omai_ray.text", "omai_ray.errors"),
    "omai_ray.engines": (
        "omai_ray.engines",
        "omai_ray.text",
        "omai_ray.catalog",
        "omai_ray.errors",
        "omai_ray.tasks",
        "omai_ray.priority",
    ),
    "clients": ("clients", "omai"),
}
FORBIDDEN = {
    "omai_ray.errors": (*HEAVY, "fastapi", "sqlalchemy", "tokenizers"),
    "omai_ray.tasks": (*HEAVY, "fastapi", "sqlalchemy", "tokenizers"),
    "omai_ray.priority": (*HEAVY, "fastapi", "sqlalchemy", "tokenizers"),
    "omai_ray.catalog": (*HEAVY, "fastapi", "sqlalchemy", "tokenizers"),
    "omai_ray.settings": (*HEAVY, "fastapi", "sqlalchemy", "tokenizers"),
    "omai_ray.storage": (*HEAVY, "fastapi", "sqlalchemy"),
    "omai_ray.text": (*HEAVY, "fastapi", "sqlalchemy", "numpy"),
    "omai_ray.autoscaling": (*HEAVY, "fastapi", "sqlalchemy", "numpy"),
    "omai_ray.engines": ("ray", "fastapi", "starlette", "sqlalchemy"),
    "omai_ray.routing": (*HEAVY, "fastapi", "sqlalchemy", "omai_ray.api", "omai_ray.engines"),
    "omai_ray.api": (*HEAVY, "deployments", "pipelines"),
    **dict.fromkeys(STATE, (*HEAVY, "fastapi", "omai_ray.api", "omai_ray.engines")),
    "omai_ray": ("ray.serve", "ray.data"),
    "pipelines": ("ray.serve", "omai_ray.api", "deployments", *STATE),
    "deployments": ("ray.data", "pipelines"),
}
# The way from serving to bulk work: what drives batches has embedding jobs done by Ray Data.
EXCEPTED = {("deployments.embedding_jobs", "pipelines.run_embedding_job")}
# What the API may have of the engines: dataclasses, in modules free of torch.
API_ENGINES = {"omai_ray.engines.chat.protocol", "omai_ray.engines.chat.text"}


def modules() -> dict[str, Path]:
    """Return every module of the repository's own packages, by its name."""
    found = {}
    for package in OWN:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Return the names that a module imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    """Whether a module is a package, or in it."""
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", ALLOWED)
def test_a_layer_imports_only_the_layers_below_it(package: str) -> None:
    """Of this repository, only what its place allows."""
    for name, path in modules().items():
        if within(name, package):
            own = {found for found in imports_of(path) if found.split(".")[0] in OWN}
            own -= {"omai_ray"}
            wrong = {n for n in own if not any(within(n, ok) for ok in ALLOWED[package])}
            assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_layer_keeps_away_from_what_is_forbidden_to_it(package: str) -> None:
    """Neither at the top of a module nor inside a function."""
    for name, path in modules().items():
        if within(name, package):
            found = imports_of(path)
            wrong = {n for n in found if any(within(n, bad) for bad in FORBIDDEN[package])}
            wrong = {n for n in wrong if not any((name, ok) in EXCEPTED for ok in _parts(n))}
            assert not wrong, f"{name} imports {sorted(wrong)}"


def _parts(name: str) -> set[str]:
    """Return a name and that of the module it may be an attribute of."""
    return {name, name.rpartition(".")[0]}


def test_the_api_uses_of_the_engines_only_their_dataclasses() -> None:
    """Requests and deltas; never a module that loads a model."""
    for name, path in modules().items():
        if within(name, "omai_ray.api"):
            used = {n for n in imports_of(path) if within(n, "omai_ray.engines")}
            wrong = {n for n in used if not any(within(n, ok) for ok in API_ENGINES)}
            assert not wrong, f"{name} imports {sorted(wrong)}"


def test_only_deployments_serve_and_only_pipelines_read_datasets() -> None:
    """ray.serve and ray.data each have one user."""
    users = {"ray.serve": "deployments", "ray.data": "pipelines"}
    for name, path in modules().items():
        for library, user in users.items():
            if any(within(found, library) for found in imports_of(path)):
                assert within(name, user), f"{name} imports {library}"


def test_nothing_imports_the_command_line() -> None:
    """omai_ray.cli is an end of its own."""
    for name, path in modules().items():
        if within(name, "omai_ray.cli"):
            continue
        found = {n for n in imports_of(path) if within(n, "omai_ray.cli")}
        assert not found, f"{name} imports {sorted(found)}"


def loaded_by(statements: str, names: tuple[str, ...]) -> set[str]:
    """Return which of the named modules a new interpreter has after some statements."""
    report = f"import sys; print(' '.join(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_api_loads_no_model_library_and_no_ray() -> None:
    """An ingress replica starts without torch, and a test without Ray."""
    assert loaded_by("import omai_ray.api.app", HEAVY) == set()


def test_the_command_line_shows_its_help_without_loading_what_works() -> None:
    """`omai-ray --help` is quick: no torch, Ray, Arrow, tokenizers or web framework."""
    statements = "from omai_ray.cli import build_parser\nbuild_parser().format_help()"
    assert loaded_by(statements, (*HEAVY, "pyarrow", "numpy", "fastapi", "tokenizers")) == set()


def test_looking_at_a_corpus_loads_neither_ray_nor_a_model_library() -> None:
    """`omai-ray corpus` reads footers, records and a tokenizer."""
    statements = "import omai_ray.cli.corpus, pipelines.embed_corpus\n"
    statements += "import pipelines.preview, pipelines.estimate, pipelines.verify"
    assert loaded_by(statements, HEAVY) == set()


def test_the_engines_load_neither_ray_nor_the_web_nor_the_database() -> None:
    """The same engine runs in a replica, in an actor and on a machine without Ray."""
    statements = "import omai_ray.engines.chat.batching_engine\n"
    statements += "import omai_ray.engines.chat.text, omai_ray.engines.embedding.batcher"
    assert loaded_by(statements, ("ray", "fastapi", "starlette", "sqlalchemy")) == set()


def test_the_text_layer_is_free_of_model_libraries() -> None:
    """Counting tokens at the edge costs no torch."""
    statements = "import omai_ray.text.chat_template, omai_ray.text.embedding_input\n"
    statements += "import omai_ray.text.tools, omai_ray.engines.chat.text"
    assert loaded_by(statements, (*HEAVY, "fastapi", "sqlalchemy")) == set()
