"""The built-in demonstration chat model and everything needed to make it again."""

from __future__ import annotations

from pathlib import Path

CHAT_MODEL_DIR = Path(__file__).parent / "omai_chat_small"
