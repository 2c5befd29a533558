from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from omai_ray.text.detokenizer import Detokenizer, StopMatcher, overlap
from omai_ray.text.tokenizer import TextTokenizer
from omai_ray.text.tools import ToolCall, ToolCallParser
from tests.checkpoints import save_chat_checkpoint

REPLACEMENT = "\ufffd"
# The replacement character itself is left out: nothing tells it from half a character.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT))
CUTS = st.lists(st.integers(0, 400))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Return a byte-level tokenizer, whose tokens may be single bytes."""
    return TextTokenizer(save_chat_checkpoint(tmp_path_factory.mktemp("chat")))


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Return a byte-level tokenizer with tokens that span two characters' bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte = {value: char for char, value in _byte_chars().items()}
    emoji = [byte[value] for value in "🙂".encode()]
    merges = [(emoji[1], emoji[2]), (emoji[3], emoji[0])]
    names = [*alphabet, *("".join(merge) for merge in merges)]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    directory = tmp_path_factory.mktemp("crossing")
    tokenizer.save(str(directory / "tokenizer.json"))
    return TextTokenizer(directory)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Return a tokenizer in the manner of Llama 2: words of letters, all else as bytes."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", "▁"]
    names = ["<unk>", *(f"<0x{value:02X}>" for value in range(256)), *letters]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    directory = tmp_path_factory.mktemp("fallback")
    tokenizer.save(str(directory / "tokenizer.json"))
    return TextTokenizer(directory)


def _byte_chars() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = {chr(value): value for value in shown}
    rest = [value for value in range(256) if value not in shown]
    return chars | {chr(256 + at): value for at, value in enumerate(rest)}


def pieces(size: int, cuts: list[int]) -> Iterator[slice]:
    """Yield slices that cut a sequence of that size at those places."""
    edges = sorted({0, size, *(cut % (size + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        yield slice(start, end)


@pytest.mark.parametrize("kind", ["byte_level", "crossing", "byte_fallback"])
@settings(max_examples=150, deadline=None)
@given(text=TEXT, cuts=CUTS)
@example(text="🙂🙂🙂", cuts=list(range(13)))
@example(text="hello 🙂", cuts=[7])
@example(text="€€€ €€", cuts=[9, 10, 11])
@example(text="👩\u200d👩\u200d👧 e\u0301", cuts=list(range(40)))
def test_pieces_make_the_whole_text_and_none_ends_in_half_a_character(
    request: pytest.FixtureRequest, kind: str, text: str, cuts: list[int]
) -> None:
    """Whatever the text and however its tokens are cut up."""
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(text, special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    told = [detokenizer.push(ids[piece]) for piece in pieces(len(ids), cuts)]
    assert not any(REPLACEMENT in piece for piece in told)
    assert tokenizer.decode(ids) == "".join(told) + detokenizer.flush()


@settings(max_examples=100, deadline=None)
@given(prompt=TEXT, text=TEXT)
def test_the_prompt_is_context_and_is_not_told(
    byte_level: TextTokenizer, prompt: str, text: str
) -> None:
    """Only what follows the prompt comes out."""
    prompt_ids = byte_level.encode(prompt, special_tokens=False)
    ids = byte_level.encode(text, special_tokens=False)
    detokenizer = Detokenizer(byte_level, prompt_ids)
    told = "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush()
    assert byte_level.decode(ids) == told


def test_a_space_between_words_of_a_metaspace_tokenizer_is_kept(
    byte_fallback: TextTokenizer,
) -> None:
    """Its decoder strips the first space of a text, which a later piece must not lose."""
    ids = byte_fallback.encode("ab cd ef", special_tokens=False)
    detokenizer = Detokenizer(byte_fallback)
    assert "ab cd ef" == "".join(detokenizer.push([token]) for token in ids)


def test_bytes_that_never_make_a_character_are_not_held_for_ever(
    byte_level: TextTokenizer,
) -> None:
    """A model may write nonsense: after four tokens it is told as it is."""
    (continuation,) = (i for i in byte_level.encode("🙂", special_tokens=False)[1:2])
    detokenizer = Detokenizer(byte_level)
    told = [detokenizer.push([continuation]) for _ in range(4)]
    assert told == ["", "", "", REPLACEMENT * 4]


def test_the_end_tells_half_a_character(byte_level: TextTokenizer) -> None:
    """What is unfinished when the sequence ends is told as a replacement character."""
    ids = byte_level.encode("a🙂", special_tokens=False)[:-1]
    detokenizer = Detokenizer(byte_level)
    assert "a" == detokenizer.push(ids)
    assert REPLACEMENT == detokenizer.flush()


def cut_at_first(text: str, stops: list[str]) -> str:
    """Return the text before the stop string that is complete first, the longest of those."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    cuts=CUTS,
)
@example(text="abc", stops=["abc", "b"], cuts=[2])
@example(text="aab", stops=["ab"], cuts=[1, 2])
def test_text_is_cut_at_the_first_stop_string_however_it_arrives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    """The pieces give the text before the stop string that is complete first."""
    matcher = StopMatcher(stops)
    told = ""
    for piece in pieces(len(text), cuts):
        told += matcher.push(text[piece])
        if matcher.stopped:
            break
    assert cut_at_first(text, stops) == told + ("" if matcher.stopped else matcher.flush())
    assert matcher.stopped == any(stop in text for stop in stops)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab", max_size=8), marker=st.text("ab", min_size=1, max_size=4))
def test_overlap_is_the_longest_ending_that_may_become_the_marker(text: str, marker: str) -> None:
    """The marker itself aside: that would have been found."""
    sizes = [size for size in range(len(marker)) if text.endswith(marker[:size])]
    assert max(sizes) == overlap(text, marker)


CALL = '<tool_call>{"name": "f", "arguments": {"a": "ü <tool_call>"}}</tool_call>'
BROKEN = [
    "<tool_call>not json</tool_call>",
    '<tool_call>{"name": 5}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
    f"<tool_call>{'[' * 5000}</tool_call>",
    '<tool_call>{"name": "f", "arguments"',
    "a < b <tool",
    "</tool_call>",
]


def parse(pieces: list[str]) -> tuple[str, list[ToolCall]]:
    """Return what is said and what is called in pieces of a text."""
    parser = ToolCallParser()
    said, calls = "", []
    for piece in pieces:
        text, found = parser.push(piece)
        said += text
        calls += found
    assert parser.called == bool(calls)
    return said + parser.flush(), calls


def test_calls_are_found_at_every_split() -> None:
    """Wherever the text is cut in two, text and calls are the same."""
    text = f"Let me see. {CALL}\n{CALL} Done <b>"
    expected = ToolCall("f", '{"a": "ü <tool_call>"}')
    for at in range(len(text) + 1):
        said, calls = parse([text[:at], text[at:]])
        assert said == "Let me see. \n Done <b>"
        assert calls == [expected, expected]
    assert parse(list(text)) == parse([text])


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_call_comes_back_as_text(text: str) -> None:
    """Nothing that a model wrote is lost."""
    assert parse([text]) == (text, [])
    assert parse(list(text)) == (text, [])


def test_a_call_without_arguments_has_empty_ones() -> None:
    """`arguments` may be left out by the model, never on the wire."""
    assert parse(['<tool_call>{"name": "f"}</tool_call>']) == ("", [ToolCall("f", "{}")])


def test_half_a_surrogate_pair_never_leaves_a_tool_call() -> None:
    """JSON can escape what is no text: arguments keep the escape, and such a name is no call."""
    said, (call,) = ToolCallParser().push(
        '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>'
    )
    assert (said, call.arguments.encode()) == ("", b'{"x": "\\ud800"}')
    text = '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'
    assert ToolCallParser().push(text) == (text, [])
