"""What an embedding checkpoint does to a text before its encoder sees it.

Read from the sentence-transformers layout: the length limit, lower-casing, the default prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omai_ray.errors import CheckpointError, ConfigError
from omai_ray.text.tokenizer import TextTokenizer, longest_context, read_json


class EmbeddingTokenizer:
    """Texts to the ids that an encoder is run on, special tokens included.

    directory: the checkpoint. context: a limit below the checkpoint's own, if any. prompt: the
    name of one of its prompts, to put before every text instead of the default one.
    Raises CheckpointError for a checkpoint, ConfigError for a context, that cannot be used.
    """

    def __init__(
        self, directory: Path, context: int | None = None, prompt: str | None = None
    ) -> None:
        files = encoder_directory(directory)
        self.text = TextTokenizer(files)
        bert = _read_encoder_settings(files)
        self._lower = bool(bert.get("do_lower_case", False))
        self.prompt = read_prompt(directory, prompt)
        longest = longest_context(files, self.text, context)
        self.context = context or min(longest, bert.get("max_seq_length") or longest)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, never shortened."""
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        if self._lower:
            texts = [text.lower() for text in texts]
        return self.text.encode_batch(texts, special_tokens=True)

    def shorten(self, ids: list[int]) -> list[int]:
        """Return ids cut to the context, the final special token (such as [SEP]) kept."""
        if len(ids) <= self.context:
            return ids
        tail = self._closing_tokens()
        return ids[: self.context - len(tail)] + tail

    def prompt_ids(self) -> list[int]:
        """Return the ids at the start of every text that its prompt accounts for."""
        if not self.prompt:
            return []
        (ids,) = self.encode([""])
        return ids[: len(ids) - len(self._closing_tokens())]

    def _closing_tokens(self) -> list[int]:
        """Return the ids that the checkpoint appends to every text."""
        empty = self.text.encode("", special_tokens=True)
        probe = self.text.encode("a", special_tokens=True)
        shared = 0
        while shared < min(len(empty), len(probe)) and empty[shared] == probe[shared]:
            shared += 1
        return empty[shared:]


def encoder_directory(directory: Path) -> Path:
    """Return the folder of a checkpoint's transformer, most often the checkpoint itself."""
    folders = [folder for kind, folder in read_modules(directory) if kind == "Transformer"]
    return folders[0] if folders else directory


def read_modules(directory: Path) -> list[tuple[str, Path]]:
    """Return each module's kind and folder; none where there is no modules.json.

    Raises CheckpointError for one that is no list of modules.
    """
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return [
            (str(module["type"]).rsplit(".", 1)[-1], directory / str(module["path"]))
            for module in modules
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is no list of modules: {error!r}") from error


def read_prompt(directory: Path, name: str | None) -> str:
    """Return what is put before every text, empty where nothing is.

    name: one of the checkpoint's prompts; its default_prompt_name where None.
    Raises CheckpointError for a default, ConfigError for a name, that is not among them.
    """
    path = directory / "config_sentence_transformers.json"
    config = read_json(path)
    prompts = config.get("prompts") or {}
    chosen = config.get("default_prompt_name") if name is None else name
    if chosen is None:
        return ""
    if chosen in prompts:
        return str(prompts[chosen])
    known = f"is not among the prompts of {path} ({', '.join(prompts) or 'none'})"
    if name is not None:
        raise ConfigError(f"prompt '{name}' {known}")
    raise CheckpointError(f"default_prompt_name '{chosen}' {known}")


def _read_encoder_settings(files: Path) -> dict[str, Any]:
    """Return the settings of sentence-transformers' Transformer module, by whichever name."""
    named = sorted(files.glob("sentence_*_config.json"))
    return read_json(named[0]) if named else {}
