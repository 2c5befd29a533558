from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import save_chat_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random chat model."""
    return save_chat_checkpoint(tmp_path_factory.mktemp("chat"))
