"""What an embedding checkpoint does to a text before its encoder sees it.

Read from the sentence-transformers layout: the length limit, lower-casing, the default prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omai_ray.errors import CheckpointError
from omai_ray.text.tokenizer import TextTokenizer, longest_context, read_json


class EmbeddingTokenizer:
    """Texts to the ids that an encoder is run on, special tokens included.

    directory: the checkpoint. context: a limit below the checkpoint's own, if any.
    Raises CheckpointError for a checkpoint, ConfigError for a context, that cannot be used.
    """

    def __init__(self, directory: Path, context: int | None = None) -> None:
        self.text = TextTokenizer(directory)
        bert = read_json(directory / "sentence_bert_config.json")
        self._lower = bool(bert.get("do_lower_case", False))
        self._prompt = default_prompt(directory)
        longest = longest_context(directory, self.text, context)
        self.context = context or min(longest, bert.get("max_seq_length") or longest)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, never shortened."""
        if self._prompt:
            texts = [self._prompt + text for text in texts]
        if self._lower:
            texts = [text.lower() for text in texts]
        return self.text.encode_batch(texts, special_tokens=True)

    def shorten(self, ids: list[int]) -> list[int]:
        """Return ids cut to the context, the final special token (such as [SEP]) kept."""
        if len(ids) <= self.context:
            return ids
        tail = self._closing_tokens()
        return ids[: self.context - len(tail)] + tail

    def _closing_tokens(self) -> list[int]:
        """Return the ids that the checkpoint appends to every text."""
        empty = self.text.encode("", special_tokens=True)
        probe = self.text.encode("a", special_tokens=True)
        shared = 0
        while shared < min(len(empty), len(probe)) and empty[shared] == probe[shared]:
            shared += 1
        return empty[shared:]


def default_prompt(directory: Path) -> str:
    """Return what is put before every text, empty where nothing is. Raises CheckpointError."""
    config = read_json(directory / "config_sentence_transformers.json")
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    prompts = config.get("prompts") or {}
    if name not in prompts:
        raise CheckpointError(
            f"{directory}/config_sentence_transformers.json: default_prompt_name '{name}' is not "
            f"among the prompts ({', '.join(prompts) or 'none'})"
        )
    return str(prompts[name])
