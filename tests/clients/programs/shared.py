"""What the programs have in common: where the server is, what is asked, how an outcome is told."""

# mypy: ignore-errors

import json
import os
import sys
from typing import Literal

from pydantic import BaseModel

BASE_URL, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
CHAT, EMBEDDING = "omai-gpt-4", "text-embedding-ada-002"
PROMPT = "Hello, how are you?"
TEXTS = ["The quick brown fox", "jumps over", "the lazy dog"]
MAX_TOKENS = 200


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Rome", "Oslo"]
    hot: bool


def tell(**facts: object) -> None:
    """Print the outcome, for the test to judge."""
    json.dump(facts, sys.stdout)
