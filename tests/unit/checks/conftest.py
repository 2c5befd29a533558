"""Files to check: those that are shipped, with something wrong put in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.checks import check_files

ROOT = Path(__file__).resolve().parents[3]
Change = Callable[[Any], object]


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives what is found in a shipped file's last document, changed."""

    def check(shipped: str, change: Change, *beside: str, document: int = 0) -> list[str]:
        documents = list(yaml.safe_load_all((ROOT / shipped).read_text(encoding="utf-8")))
        change(documents[document])
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        files = [path, *(ROOT / name for name in beside)]
        return [str(f).replace(str(path), "changed.yaml") for f in check_files(files)]

    return check
