"""The tokenizer of the demonstration model, and dialogues as tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omai_ray.models import CHAT_MODEL_DIR, values
from omai_ray.models.samples import Dialogue

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
VOCABULARY = 2560
JOINED_WORDS = 900
CONTEXT_TOKENS = 2048
TEMPLATE_FILE = CHAT_MODEL_DIR / "chat_template.jinja"
WORD = re.compile(r"(?<![a-zA-Z])([a-zA-Z]+)")


def render(tokenizer: Any, dialogue: Dialogue) -> str:
    """Render a whole dialogue with the chat template, as a server would."""
    tools = list(dialogue.tools) or None
    messages = list(dialogue.messages)
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))


def slot_words() -> set[str]:
    """List the words that stand in slots, in lower case."""
    phrases = (values.TOPICS, values.ACTIVITIES)
    named = vars(values).items()
    pools = [pool for name, pool in named if name.isupper() and pool not in phrases]
    return {word.lower() for pool in pools for value in pool for word in value.split()}


def joined_words(texts: Iterable[str]) -> list[str]:
    """Choose the common words of the fixed wording: none of them ever stands in a slot."""
    slots = slot_words()
    counts = Counter(word for text in texts for word in WORD.findall(text))
    fixed = [word for word, _ in counts.most_common() if word.lower() not in slots]
    return sorted(fixed[:JOINED_WORDS], key=lambda word: (-len(word), word))


def split_pattern(words: Sequence[str]) -> str:
    """Write the pattern that cuts text before byte-pair merging.

    Common fixed words are whole, with the space before them. Every other word is cut into pairs
    of letters, apart from its space: a name or value is the same tokens wherever it stands, and
    one that was never seen is made of tokens that were, which lets a model this small copy it.
    """
    return (
        r"'(?:[sdmt]|ll|ve|re)(?!\p{L})"
        rf"|(?: |(?<!\p{{L}}))(?:{'|'.join(words)})(?!\p{{L}})"
        r"|\p{L}{1,2}|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
    )


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with single digits on rendered dialogues."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(joined_words(texts))), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    unmarked = re.compile("|".join(re.escape(mark) for mark in (TURN_START, TURN_END, *TAGS)))
    tokenizer.train_from_iterator((unmarked.sub(" ", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Give a tokenizer its chat template and its end and padding tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        chat_template=TEMPLATE_FILE.read_text(encoding="utf-8"),
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def reply_mask(ids: Sequence[int], opening: Sequence[int], end: int) -> list[bool]:
    """Mark the tokens that an assistant says: after its opening, through the end of the turn.

    opening: the tokens of the generation prompt. Returns one flag per token of `ids`.
    """
    mask = [False] * len(ids)
    speaking = False
    width = len(opening)
    for index in range(width, len(ids)):
        if not speaking and list(ids[index - width : index]) == list(opening):
            speaking = True
        mask[index] = speaking
        if ids[index] == end:
            speaking = False
    return mask
