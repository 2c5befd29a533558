from __future__ import annotations

import json
from pathlib import Path

import pytest

from omai_ray.errors import CheckpointError, ConfigError, InvalidRequest
from omai_ray.text.embedding_input import EmbeddingTokenizer
from omai_ray.text.tokenizer import TextTokenizer, longest_context, read_json
from tests.checkpoints import save_embedding_checkpoint

CLS, SEP = 2, 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a small random embedding model."""
    return save_embedding_checkpoint(tmp_path)


def edit(path: Path, **values: object) -> None:
    """Change values of a JSON file."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(config | values), encoding="utf-8")


def test_encoding_adds_the_checkpoints_own_tokens_and_cuts_nothing(checkpoint: Path) -> None:
    """Special tokens on both sides, however long the text."""
    tokenizer = EmbeddingTokenizer(checkpoint)
    (ids,) = tokenizer.encode(["the fox " * 100])
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert len(ids) > tokenizer.context


def test_shortening_keeps_the_closing_token(checkpoint: Path) -> None:
    """An input that is cut ends like one that is not."""
    tokenizer = EmbeddingTokenizer(checkpoint)
    (ids,) = tokenizer.encode(["the fox " * 100])
    short = tokenizer.shorten(ids)
    assert len(short) == tokenizer.context
    assert [*ids[: tokenizer.context - 1], SEP] == short
    assert tokenizer.shorten(short) == short


def test_many_texts_are_encoded_in_their_order(checkpoint: Path) -> None:
    """A batch is the same as one after the other."""
    tokenizer = EmbeddingTokenizer(checkpoint)
    texts = [f"the fox {number}" for number in range(100)]
    assert [tokenizer.encode([text])[0] for text in texts] == tokenizer.encode(texts)


def test_the_default_prompt_and_lower_case_of_a_checkpoint_apply(checkpoint: Path) -> None:
    """As sentence-transformers does before its encoder."""
    plain = EmbeddingTokenizer(checkpoint).encode(["query: hello fox"])
    edit(
        checkpoint / "config_sentence_transformers.json",
        prompts={"query": "Query: "},
        default_prompt_name="query",
    )
    edit(checkpoint / "sentence_bert_config.json", do_lower_case=True)
    assert plain == EmbeddingTokenizer(checkpoint).encode(["HELLO fox"])


def test_a_default_prompt_that_is_not_there_is_refused(checkpoint: Path) -> None:
    """The error names it."""
    edit(checkpoint / "config_sentence_transformers.json", default_prompt_name="query")
    with pytest.raises(CheckpointError, match="'query' is not among the prompts"):
        EmbeddingTokenizer(checkpoint)


def test_the_context_is_the_smallest_limit(checkpoint: Path) -> None:
    """Positions, the tokenizer's limit, the sentence limit, and the operator's own."""
    assert EmbeddingTokenizer(checkpoint).context == 48
    assert EmbeddingTokenizer(checkpoint, 20).context == 20
    edit(checkpoint / "tokenizer_config.json", model_max_length=30)
    assert EmbeddingTokenizer(checkpoint).context == 30
    with pytest.raises(ConfigError, match=r"context 64 is above .* \(30\)"):
        EmbeddingTokenizer(checkpoint, 64)


def test_positions_that_begin_after_the_padding_count_less(checkpoint: Path) -> None:
    """RoBERTa's kin number positions from pad_token_id + 1."""
    edit(checkpoint / "config.json", model_type="xlm-roberta", pad_token_id=1)
    tokenizer = TextTokenizer(checkpoint)
    assert longest_context(checkpoint, tokenizer, None) == 62


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused(checkpoint: Path, bad: int) -> None:
    """By value, with the range."""
    tokenizer = TextTokenizer(checkpoint)
    tokenizer.check_ids([0, tokenizer.vocab_size - 1], "input")
    tokenizer.check_ids([], "input")
    with pytest.raises(InvalidRequest, match=rf"token id {bad} .* \(0 to") as caught:
        tokenizer.check_ids([1, bad, 2], "input")
    assert caught.value.param == "input"


def test_a_directory_without_the_fast_format_is_refused(tmp_path: Path) -> None:
    """The error says how to make it."""
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*save_pretrained"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TextTokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    """The error names the file; an absent one is empty."""
    path = tmp_path / "config.json"
    assert read_json(path) == {}
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(path)
