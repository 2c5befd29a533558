"""What mkdocs asks while it builds the pages of docs/.

Pages that are kept elsewhere (the README, the changelog, the contributor's guide) and the API's
reference are added; links to files of the repository, which the site has not, become their names.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that docs/ has not."""
    from scripts.api_reference import read_document, render

    for name, source in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=relinked(text, "")))
    files.append(File.generated(config, "reference.md", content=render(read_document())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page of docs/; the pages from elsewhere have been."""
    return markdown if page.file.generated_by else relinked(markdown, "docs")


def relinked(markdown: str, folder: str) -> str:
    """Return a page whose links are right in the site. folder: where in the repository it is."""
    pages = {source: name for name, source in ELSEWHERE.items()}

    def rewritten(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in pages:
            return f"[{text}]({pages[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    return _LINK.sub(rewritten, markdown)
