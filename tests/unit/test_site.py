"""The pages of docs/, built as `make docs` builds them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.api_reference import read_document, render
from tests.programs import require_module
from tests.snippets import ROOT

LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]* src=\"?([^\s\">]+)")
STYLES = re.compile(r"<link[^>]* rel=\"?(?:stylesheet|icon|preconnect|preload)[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pages; a warning is an error."""
    require_module("mkdocs", extra="docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    """Scripts, styles, fonts and pictures are the site's own."""
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert len(pages) > 20
    loaded = [source for page in pages for source in LOADED.findall(page)]
    assert loaded
    assert [source for source in loaded if "//" in source] == []
    assert [link for page in pages for link in STYLES.findall(page) if "//" in link] == []
    assert [page for page in pages if 'class="mermaid"' in page] == []


def test_the_reference_has_every_endpoint_and_field(site: Path) -> None:
    """From the server's own document, with links to the objects."""
    page = (site / "reference.html").read_text(encoding="utf-8")
    document = read_document()
    for path in document["paths"]:
        assert path in page
    for name in document["components"]["schemas"]:
        assert f'id="{name.lower()}"' in page
    assert "max_completion_tokens" in page


def test_links_to_files_of_the_repository_become_their_names(site: Path) -> None:
    """The site has pages alone; those that are kept elsewhere are among them."""
    index = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="bulk.html"' in index
    assert "<code>clients/python</code>" in index
    assert 'href="changelog.html"' in (site / "operations.html").read_text(encoding="utf-8")
    assert "(<code>deployments/edge.py</code>)" in (site / "api.html").read_text(encoding="utf-8")


def test_a_schema_is_one_line_of_a_table() -> None:
    """Bounds, choices, defaults and links; what would end a cell is escaped."""
    inner = {"type": "object", "description": "Inner."}
    fields = {
        "n": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": 2},
        "kind": {"enum": ["a", "b"]},
        "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Inner"}, "maxItems": 3},
        "name": {"type": "string", "pattern": "^a|b$", "description": "A | B"},
    }
    outer = {"type": "object", "properties": fields, "required": ["kind"]}
    page = render(
        {
            "info": {"title": "T"},
            "paths": {},
            "components": {"schemas": {"Outer": outer, "Inner": inner}},
        }
    )
    assert "| `n` | integer (≥ 1) or null | default `2` |" in page
    assert '| `kind` | `"a"`, `"b"` | required |' in page
    assert "| `parts` | array of [Inner](#inner) (at most 3 items) |  |" in page
    assert "| `name` | string (`^a\\|b$`) | A \\| B |" in page
