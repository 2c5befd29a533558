from __future__ import annotations

import json
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omai_ray.text.embedding_input import EmbeddingTokenizer
from omai_ray.text.windows import Window, cut
from tests.checkpoints import save_chat_checkpoint, save_embedding_checkpoint

ODD = "aé e\u0301\u0323漢字かな\U0001f469\u200d\U0001f469\u200d\U0001f467👍🏽 \u0000\u200fİßﬁ\n\t한"
MOST_BYTES = 4  # and tokens, of one character


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingTokenizer:
    """Return one whose tokens are bytes or more, with nothing around texts."""
    return EmbeddingTokenizer(save_chat_checkpoint(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small embedding model of word pieces."""
    return save_embedding_checkpoint(tmp_path_factory.mktemp("pieces"))


def with_settings(checkpoint: Path, directory: Path, *, prompt: str, lower: bool) -> Path:
    """Return a copy of a checkpoint's tokenizer with a prompt, and lower case or not."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (directory / name).write_bytes((checkpoint / name).read_bytes())
    named = {"prompts": {"p": prompt}, "default_prompt_name": "p"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(named))
    lowered = {"max_seq_length": 48, "do_lower_case": lower}
    (directory / "sentence_bert_config.json").write_text(json.dumps(lowered))
    return directory


@given(
    st.lists(st.integers(1, MOST_BYTES), max_size=60),
    st.integers(MOST_BYTES, 12),
    st.integers(0, 11),
)
def test_windows_cover_all_tokens_in_order_and_never_part_a_character(
    sizes: list[int], size: int, overlap: int
) -> None:
    """None is too large; each begins with as many of the last one's tokens as asked, or fewer."""
    spans = [(i, i + 1) for i, tokens in enumerate(sizes) for _ in range(tokens)]
    starts = {i for i, span in enumerate(spans) if i == 0 or spans[i - 1] != span}
    windows = list(cut(len(spans), spans.__getitem__, size, overlap))
    assert {i for first, end in windows for i in range(first, end)} == set(range(len(spans)))
    assert all(0 < end - first <= size for first, end in windows)
    assert all(first in starts and (end in starts or end == len(spans)) for first, end in windows)
    for (first, end), (next_first, next_end) in pairwise(windows):
        assert first < next_first <= end < next_end
        assert end - next_first <= overlap


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 19))
def test_windows_overlap_by_exactly_what_is_asked_where_tokens_are_characters(
    count: int, size: int, overlap: int
) -> None:
    """And all but the last are full."""
    overlap = min(overlap, size - 1)
    windows = list(cut(count, lambda token: (token, token + 1), size, overlap))
    assert all(end - first == size for first, end in windows[:-1])
    assert all(end - start == overlap for (_, end), (start, _) in pairwise(windows))
    assert len(windows) == max(1, -(-(count - overlap) // (size - overlap)))


def test_a_character_of_more_tokens_than_a_window_holds_is_in_several() -> None:
    """There is no other way, and the rest is cut as ever."""
    spans = [(0, 1), *[(1, 2)] * 5, (2, 3)]
    assert list(cut(7, spans.__getitem__, 2, 0)) == [(0, 1), (1, 3), (3, 5), (5, 7)]


@given(st.text(st.sampled_from(ODD), max_size=80), st.integers(MOST_BYTES, 16))
def test_the_characters_of_byte_level_windows_join_up_to_the_text(
    bytes_tokenizer: EmbeddingTokenizer, text: str, size: int
) -> None:
    """Whatever the script; and their ids to the ids of the text."""
    (windows,) = bytes_tokenizer.windows([text], size, 0)
    assert "".join(text[window.start : window.end] for window in windows) == text
    assert [i for window in windows for i in window.ids] == bytes_tokenizer.encode([text])[0]
    assert all(len(window.ids) <= size for window in windows)


@given(
    st.text(st.sampled_from(ODD + "the fox"), max_size=80), st.integers(6, 16), st.integers(0, 3)
)
def test_word_piece_windows_are_the_texts_tokens_between_the_checkpoints_own(
    checkpoint: Path, text: str, size: int, overlap: int
) -> None:
    """Every window begins and ends as a whole text does; the spans hold the tokens' characters."""
    tokenizer = EmbeddingTokenizer(checkpoint)
    (whole,) = tokenizer.encode([text])
    (windows,) = tokenizer.windows([text], size, overlap)
    assert all((w.ids[0], w.ids[-1]) == (whole[0], whole[-1]) for w in windows)
    assert all(len(w.ids) <= size for w in windows)
    assert all(a.start <= b.start and a.end < b.end for a, b in pairwise(windows))
    if len(whole) <= size:
        assert [w.ids.tolist() for w in windows] == [whole]
    if not overlap:
        assert [i for w in windows for i in w.ids[1:-1]] == whole[1:-1]
        covered = "".join(text[w.start : w.end] for w in windows)
        assert "".join(covered.split()) == "".join(text.split())


def test_every_window_has_the_prompt_before_it_and_places_in_the_text_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    """As online, where the prompt is put before a whole text."""
    directory = with_settings(checkpoint, tmp_path, prompt="user: ", lower=False)
    tokenizer = EmbeddingTokenizer(directory)
    (head,) = tokenizer.encode([""])
    text = "the quick brown fox jumps over the lazy dog"
    (windows,) = tokenizer.windows([text], len(head) + 4, 1)
    assert len(windows) > 2
    assert tokenizer.tokens_around == len(head)
    for window in windows:
        assert [*window.ids[: len(head) - 1], window.ids[-1]] == head
        part = text[window.start : window.end]
        assert part.strip() == part
    assert (windows[0].start, windows[-1].end) == (0, len(text))


def test_places_are_of_the_text_as_it_was_before_it_was_put_into_lower_case(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Which is longer, where a dotted capital I is in it."""
    directory = with_settings(checkpoint, tmp_path, prompt="İ: ", lower=True)
    tokenizer = EmbeddingTokenizer(directory)
    text = "İİİ the FOX İ over THE dog"
    (windows,) = tokenizer.windows([text], tokenizer.tokens_around + 1, 0)
    words = [text[window.start : window.end] for window in windows]
    assert "".join(words) == text.replace(" ", "")
    assert {"the", "THE"} <= set(words)


def test_a_text_without_tokens_is_one_window_of_no_characters(checkpoint: Path) -> None:
    """With the ids that the model is run on for it."""
    tokenizer = EmbeddingTokenizer(checkpoint)
    (ids,) = tokenizer.encode([""])
    assert tokenizer.windows([" "], 8, 0) == [[Window(array("i", ids), 0, 0)]]
