"""What an embedding checkpoint does to a text, or a reranker to two, before its encoder sees it.

Read from the sentence-transformers layout: the length limit, lower-casing, the default prompt.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import Encoding

from omai_ray.errors import CheckpointError, ConfigError, ContextTooLong
from omai_ray.text.tokenizer import TextTokenizer, longest_context, read_json
from omai_ray.text.windows import Span, Window, cut


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
        settings = _read_encoder_settings(files)
        self._lower = bool(settings.get("do_lower_case", False))
        self.prompt = read_prompt(directory, prompt)
        self.context = _read_context(files, self.text, settings, context)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, never shortened."""
        return self.text.encode_batch(self._prompted(texts), special_tokens=True)

    def windows(self, texts: Sequence[str], size: int, overlap: int) -> list[list[Window]]:
        """Return each text's parts of at most `size` tokens, cut as `cut` says.

        size: counts what is put around each part, which is what is put around the whole text: see
        `tokens_around`. overlap: counts the text's own tokens. A text that fits is one window,
        with the ids that `encode` gives.
        """
        encodings = self.text.backend.encode_batch(self._prompted(texts))
        return [
            self._cut(text, encoding, size, overlap)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    @cached_property
    def tokens_around(self) -> int:
        """How many tokens the prompt and the special ones are."""
        (ids,) = self.encode([""])
        return len(ids)

    def _prompted(self, texts: Sequence[str]) -> Sequence[str]:
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        return [text.lower() for text in texts] if self._lower else texts

    def _cut(self, text: str, encoding: Encoding, size: int, overlap: int) -> list[Window]:
        ids = array("i", encoding.ids)
        origin = _origin(self.prompt + text) if self._lower else None
        shift = len(self.prompt)

        def span(token: int) -> Span:
            start, end = encoding.token_to_chars(token) or (0, 0)
            if origin is not None:
                start, end = origin(start), origin(end - 1) + 1 if end else 0
            return max(0, start - shift), max(0, end - shift)

        first, end = self._opening, len(ids) - len(self._closing)
        while shift and first < end and span(first)[1] == 0:
            first += 1
        if first >= end:
            return [Window(ids, 0, 0)]
        around = first + len(ids) - end
        parts = cut(end - first, lambda token: span(first + token), max(1, size - around), overlap)
        return [
            Window(
                ids[:first] + ids[first + low : first + high] + ids[end:],
                span(first + low)[0],
                span(first + high - 1)[1],
            )
            for low, high in parts
        ]

    def shorten(self, ids: list[int]) -> list[int]:
        """Return ids cut to the context, the final special token (such as [SEP]) kept."""
        if len(ids) <= self.context:
            return ids
        return ids[: self.context - len(self._closing)] + self._closing

    def prompt_ids(self) -> list[int]:
        """Return the ids at the start of every text that its prompt accounts for."""
        if not self.prompt:
            return []
        (ids,) = self.encode([""])
        return ids[: len(ids) - len(self._closing)]

    @cached_property
    def _closing(self) -> list[int]:
        """The ids that the checkpoint appends to every text."""
        empty = self.text.encode("", special_tokens=True)
        probe = self.text.encode("a", special_tokens=True)
        shared = 0
        while shared < min(len(empty), len(probe)) and empty[shared] == probe[shared]:
            shared += 1
        return empty[shared:]

    @cached_property
    def _opening(self) -> int:
        """How many ids the checkpoint puts before every text."""
        return len(self.text.encode("", special_tokens=True)) - len(self._closing)


class PairTokenizer:
    """Pairs of texts to the ids that a cross-encoder is run on, special tokens included.

    directory: the checkpoint. context: a limit below the checkpoint's own, if any.
    Raises CheckpointError for a checkpoint, ConfigError for a context, that cannot be used.
    """

    def __init__(self, directory: Path, context: int | None = None) -> None:
        files = encoder_directory(directory)
        self.text = TextTokenizer(files)
        settings = _read_encoder_settings(files)
        self._lower = bool(settings.get("do_lower_case", False))
        self.prompt = read_prompt(directory, None) if read_modules(directory) else ""
        self.context = _read_context(files, self.text, settings, context)
        self._probe = self.text.backend.encode("a", "a")
        owners = self._probe.sequence_ids  # 0 in the query, 1 in the document, None in neither
        try:
            opening, document = owners.index(0), owners.index(1)
        except ValueError:
            raise CheckpointError(f"{files}: its tokenizer cannot join two texts") from None
        query_end = document - owners[:document][::-1].index(0)
        closing = len(owners) - owners[::-1].index(1)
        self._opening = opening
        self._separator: list[int] = self._probe.ids[query_end:document]
        self._closing: list[int] = self._probe.ids[closing:]
        self._document_type: int = self._probe.type_ids[document]

    def encode_pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        """Return the ids of the query with each document, never shortened."""
        query = self.prompt + query
        if self._lower:
            query, documents = query.lower(), [text.lower() for text in documents]
        pairs = [(query, text) for text in documents]
        return [encoding.ids for encoding in self.text.backend.encode_batch_fast(pairs)]

    def shorten_pair(self, ids: list[int]) -> list[int]:
        """Return ids cut to the context at the document's end, the closing tokens kept.

        Raises ContextTooLong where the query leaves no room for a token of the document.
        """
        if len(ids) <= self.context:
            return ids
        kept = self.context - len(self._closing)
        start = self._document_start(ids)
        if kept <= start:
            raise ContextTooLong(
                f"the query has {start} tokens with those around it, which leaves no room for a "
                f"document; the model accepts {self.context} for both",
                param="query",
            )
        return ids[:kept] + self._closing

    def segments(self, ids: list[int]) -> list[int]:
        """Return each token's segment: 0, and from the document on what the checkpoint gives it."""
        start = self._document_start(ids)
        if not start:
            return [0] * len(ids)
        return [0] * start + [self._document_type] * (len(ids) - start)

    @property
    def tells_segments(self) -> bool:
        """Tell whether `segments` gives what the checkpoint's tokenizer does."""
        expected: list[int] = self._probe.type_ids
        return self.segments(self._probe.ids) == expected

    def _document_start(self, ids: list[int]) -> int:
        """Return where the document starts: after the first separator; 0 where that is unknown.

        A query that spells the separator out has it earlier, as it has in other tokenizers' ids.
        """
        width = len(self._separator)
        for start in range(self._opening, len(ids) - width + 1 if width else 0):
            if ids[start : start + width] == self._separator:
                return start + width
        return 0


def _origin(text: str) -> Callable[[int], int]:
    """Return what gives the place in a text of a place in its lower case, which can be longer."""
    ends = list(accumulate(len(character.lower()) for character in text))
    return lambda place: bisect_right(ends, place)


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


def _read_context(
    files: Path, tokenizer: TextTokenizer, settings: dict[str, Any], wanted: int | None
) -> int:
    longest = longest_context(files, tokenizer, wanted)
    return wanted or min(longest, settings.get("max_seq_length") or longest)
