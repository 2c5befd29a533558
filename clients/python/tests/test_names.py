from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import openai
import pytest

import omai

ROOT = Path(__file__).parents[1]


def listed(heading: str) -> list[str]:
    """Return the names that the README has in the code block below a heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split(f"\n{heading}\n", 1)[1].split("```")[1]
    lines = [line.split("  ")[0] for line in block.splitlines()[1:]]
    return [name for line in lines for name in re.findall(r"\w+", line)]


@pytest.mark.parametrize(
    ("heading", "module"), [("### `omai`", omai), ("### `omai.types`", omai.types)]
)
def test_exported_names_are_those_in_the_readme(heading: str, module: object) -> None:
    """No name more, and none less."""
    exported = vars(module)["__all__"]
    assert sorted(exported) == sorted(listed(heading))
    assert [] == [name for name in exported if not hasattr(module, name)]
    public = {name for name in vars(module) if not name.startswith("_")}
    imported = {"BaseModel", "Literal", "annotations"}
    assert set() == public - set(exported) - imported


def test_every_error_is_an_omai_error() -> None:
    """So that one `except omai.OMAiError` catches all that a client raises."""
    errors = [getattr(omai, name) for name in omai.__all__ if name.endswith("Error")]
    assert 17 == len(errors)
    assert all(issubclass(error, omai.OMAiError) for error in errors)
    assert all(issubclass(error, openai.OpenAIError) for error in errors)


def test_version_is_the_packages() -> None:
    """Which the User-Agent tells."""
    assert version("omai-sdk") == omai.__version__


def test_importing_takes_no_server_code() -> None:
    """The SDK is installed where the platform is not."""
    code = "import sys, omai; print([m for m in sys.modules if m.startswith('omai_ray')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"[]" == found.stdout.strip()


def test_package_is_typed() -> None:
    """Type checkers read its annotations only beside this file."""
    assert (Path(str(omai.__file__)).parent / "py.typed").exists()
