"""The fenced blocks of the README and of docs/, and which of them no test runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PROGRAMS = ("bash", "python", "javascript")
_BLOCK = re.compile(r"^```(\S*)[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)

# Programs that no test runs as they stand, by their keys, and why.
NOT_RUN = {
    (
        "README.md",
        "make demo",
    ): "CI runs `make demo` and `make test`, of which this is a part; the third takes long",
    ("README.md", ".venv/bin/omai-ray serve"): "ends at Ctrl-C; tests/ray/test_command.py runs it",
    ("README.md", ".venv/bin/pip install ./clients/python"): "make test has installed it",
    (
        "README.md",
        ".venv/bin/omai-ray serve --chat-model Qwen/Qwen3-0.6B --alias gpt-4o-mini=omai-gpt-4",
    ): "needs the hub; tests/ray/test_command.py gives it directories",
    ("README.md", ".venv/bin/omai-ray top"): "ends at Ctrl-C; test_monitoring.py runs it once",
    ("docs/monitoring.md", "omai-ray top"): "ends at Ctrl-C; test_monitoring.py runs it once",
    (
        "docs/monitoring.md",
        "cd monitoring/prometheus",
    ): "ends at Ctrl-C; test_monitoring.py runs Prometheus with these files",
    (
        "README.md",
        ".venv/bin/python examples/sample_corpus.py corpus --rows 2000",
    ): "CI runs `make demo`, which does this; docs/bulk.md's are run as they stand",
    (
        "docs/bulk.md",
        "export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… AWS_REGION=eu-west-1",
    ): "needs buckets; tests/unit/pipelines have an S3 server",
    ("docs/clusters.md", "docker build -t registry.example.com/omai-ray:0.1.0 ."): "needs Docker",
    (
        "docs/clusters.md",
        "kubectl create secret generic omai-environment --from-env-file=environment",
    ): "needs Kubernetes",
}
# Blocks of no language: a form of keys, and a directory.
LISTINGS = {
    ("docs/accounts.md", "omai-sk-[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}"),
    ("docs/bulk.md", "OUT/<the input's tree>/x.parquet"),
}


@dataclass(frozen=True)
class Snippet:
    """A fenced block. line: of its fence in the page, from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.page}:{self.line}"

    @property
    def key(self) -> tuple[str, str]:
        """The page, and the first line up to a remark."""
        return self.page, self.text.splitlines()[0].partition("  ")[0]


def snippets(*languages: str) -> list[Snippet]:
    """Return the blocks of all pages, in order; of these languages only, where some are named."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            snippet = Snippet(page, text[: block.start()].count("\n") + 1, block[1], block[2])
            if not languages or snippet.language in languages:
                found.append(snippet)
    return found
