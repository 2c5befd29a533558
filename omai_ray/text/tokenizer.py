"""A checkpoint's tokenizer, read without torch or transformers.

Counting at the edge must give the replica's counts, so both use this one class. Only the fast
format (`tokenizer.json`) is read: every current checkpoint has it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from omai_ray.errors import CheckpointError, ConfigError, InvalidRequest

_UNBOUNDED = 10**9
# RoBERTa's descendants number positions from pad_token_id + 1.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}


class TextTokenizer:
    """Encode texts to token ids, and decode them.

    directory: holds tokenizer.json. Raises CheckpointError where it does not.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{directory}: no tokenizer.json; save the tokenizer in the fast format "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        try:
            self.backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        self.backend.no_truncation()
        self.backend.no_padding()
        self.config = read_json(directory / "tokenizer_config.json")
        self.vocab_size: int = self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Return the text's ids; special_tokens adds the checkpoint's own (such as [CLS])."""
        (ids,) = self.encode_batch([text], special_tokens=special_tokens)
        return ids

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Return each text's ids, the texts spread over the tokenizer's own threads.

        Other Python threads run meanwhile, as they do not during `backend.encode`.
        """
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return each token as the vocabulary has it; empty for one that it has not."""
        return [self.backend.id_to_token(token_id) or "" for token_id in ids]

    def has_token(self, text: str) -> bool:
        """Tell whether a text is a token of its own, added to those that texts are split into."""
        added = self.backend.get_added_tokens_decoder().values()
        return any(token.content == text for token in added)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise InvalidRequest where an id is outside the vocabulary."""
        for token_id in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequest(
                    f"Invalid '{param}': token id {token_id} is outside the vocabulary "
                    f"(0 to {self.vocab_size - 1}).",
                    param=param,
                )


def longest_context(directory: Path, tokenizer: TextTokenizer, wanted: int | None) -> int:
    """Return how many tokens a sequence may have: the checkpoint's own limit, or a lower one.

    Raises ConfigError where `wanted` is above what the checkpoint can do.
    """
    config = read_json(directory / "config.json")
    config = config.get("text_config") or config
    longest = int(config.get("max_position_embeddings") or config.get("n_positions") or _UNBOUNDED)
    if config.get("model_type") in _OFFSET_POSITIONS:
        longest -= int(config.get("pad_token_id", 1)) + 1
    longest = int(min(longest, tokenizer.config.get("model_max_length") or _UNBOUNDED))
    if wanted is not None and wanted > longest:
        raise ConfigError(
            f"context {wanted} is above what the checkpoint in {directory} can do ({longest})"
        )
    return wanted or longest


def read_json(path: Path) -> dict[str, Any]:
    """Return a checkpoint's JSON file, empty where it is absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value
