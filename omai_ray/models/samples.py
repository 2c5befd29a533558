"""The pieces a training dialogue is made of, and the train/held-out split they are drawn from.

Every phrase pool and every value pool has two sides. Training draws from one side only and
the evaluation from the other only, so a held-out dialogue has wording and slot values that
the model never saw.
"""

from __future__ import annotations

import random
import re
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Message = dict[str, Any]
Split = Literal["train", "heldout"]
CheckKind = Literal["equal", "value", "number", "tool", "refusal", "greeting", "contains"]

HELDOUT_PHRASE_PERIOD = 6
HELDOUT_PHRASE_OFFSET = 4
HELDOUT_VALUE_BUCKETS = 10
DRAW_TRIES = 400
INVENTED_PART, SCRAMBLED_PART, LOOSENED_PART = 0.15, 0.2, 0.25

LIGHT_WORDS = frozenset(
    (
        *("a", "an", "the", "do", "does", "is", "are", "am", "i", "you", "me", "my", "your", "it"),
        *("to", "of", "in", "on", "for", "with", "at", "can", "could", "will", "would", "please"),
        *("so", "very", "any", "some", "be", "that", "this", "there", "here", "have", "has", "now"),
    )
)
FILLER_WORDS = ("please", "so", "then", "now", "ok", "well", "really", "just", "again")

SYLLABLE_STARTS = (
    *("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z"),
    *("br", "cl", "dr", "fl", "gr", "kn", "pl", "qu", "sh", "st", "th", "tr", "ch", "x", "y", ""),
)
SYLLABLE_CORES = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "oo", "ou", "ie", "y")
SYLLABLE_ENDS = ("", "", "", "", "n", "r", "l", "s", "t", "m", "ck", "nd", "x", "sh", "p", "g", "d")


@dataclass(frozen=True)
class Check:
    """How the last assistant turn of a dialogue is graded.

    expected: what must be there; its meaning depends on the kind (see evaluate_chat.grade).
    forbidden: words that must not appear, such as the other answers of the same family.
    """

    kind: CheckKind
    expected: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """One or more turns ending with the graded assistant turn, and the tools they need."""

    messages: tuple[Message, ...]
    check: Check
    tools: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A whole conversation: its last message is the assistant turn that `check` grades."""

    skill: str
    messages: tuple[Message, ...]
    check: Check
    tools: tuple[Message, ...] = ()


def is_heldout_value(value: str) -> bool:
    """Tell whether a slot value belongs to the held-out side (about one in ten, by checksum)."""
    return zlib.crc32(value.lower().encode()) % HELDOUT_VALUE_BUCKETS == 0


@cache
def phrases_of(pool: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """Give one side of a phrase pool: every sixth phrase, from the fifth on, is held out."""
    wanted = split == "heldout"
    return tuple(
        phrase
        for index, phrase in enumerate(pool)
        if (index % HELDOUT_PHRASE_PERIOD == HELDOUT_PHRASE_OFFSET) == wanted
    )


def plain_wording(text: str) -> str:
    """Reduce a phrase to what wording alone tells apart, keeping slots and operators."""
    return re.sub(r"[^\w{}+*/-]+", " ", text.lower()).strip()


@cache
def heldout_wording(pool: tuple[str, ...]) -> frozenset[str]:
    """Give the held-out phrases of a pool, reduced to their wording."""
    return frozenset(plain_wording(phrase) for phrase in phrases_of(pool, "heldout"))


@cache
def values_of(pool: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """Give one side of a value pool, split by checksum so that pools sharing a value agree."""
    wanted = split == "heldout"
    return tuple(value for value in pool if is_heldout_value(value) == wanted)


def user(text: str) -> Message:
    """Make a user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Make an assistant message."""
    return {"role": "assistant", "content": text}


def exchange(question: str, answer: str, check: Check) -> Exchange:
    """Make the plain exchange: one user turn, one assistant turn."""
    return Exchange((user(question), assistant(answer)), check)


class Draw:
    """Random choices restricted to one side of the split."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.split: Split = split

    def chance(self, probability: float) -> bool:
        """Flip a biased coin."""
        return self.rng.random() < probability

    def one(self, options: Sequence[str]) -> str:
        """Choose from a list that is not split, such as reply wordings."""
        return self.rng.choice(options)

    def phrase(self, pool: tuple[str, ...]) -> str:
        """Choose a template from this side of a phrase pool."""
        return self.rng.choice(phrases_of(pool, self.split))

    def value(self, pool: tuple[str, ...]) -> str:
        """Choose a slot value from this side of a value pool.

        In training a plain word is sometimes replaced by an invented one that looks like it, so
        that the model learns to copy what stands there and not what usually stands there.
        """
        chosen = self.rng.choice(values_of(pool, self.split))
        plain = chosen.isascii() and chosen.isalpha()
        if self.split == "heldout" or not plain or not self.chance(INVENTED_PART):
            return chosen
        if chosen.isupper():
            return self._letters(len(chosen)).upper()
        return self.pseudo_word(capital=chosen[0].isupper())

    def say(self, pool: tuple[str, ...], **slots: str) -> str:
        """Fill a template, sometimes in lower case or without its closing mark as people type.

        In training it may also lose or gain a word, but never so as to become held-out wording.
        """
        template = self.phrase(pool)
        loosened = self._loose(template)
        if plain_wording(loosened) not in heldout_wording(pool):
            template = loosened
        if self.chance(0.2):
            template = template[0].lower() + template[1:] if self.chance(0.5) else template.lower()
        if template[-1] in "?.!" and self.chance(0.15):
            template = template[:-1]
        return template.format(**slots)

    def _loose(self, template: str) -> str:
        """In training, sometimes lose or add a word that carries no meaning, as people do.

        It teaches the model to go by the words that matter, and so to take wordings it never saw.
        """
        words = template.split()
        if self.split == "heldout" or len(words) < 3 or not self.chance(LOOSENED_PART):
            return template
        light = [i for i, word in enumerate(words) if word.lower().strip("?.!,") in LIGHT_WORDS]
        if light and self.chance(0.6):
            del words[self.rng.choice(light)]
        elif words[-1].endswith("}") or self.chance(0.5):  # nothing may follow a text to repeat
            words.insert(0, self.rng.choice(FILLER_WORDS))
        else:
            words.append(self.rng.choice(FILLER_WORDS))
        return " ".join(words)

    def pseudo_word(self, capital: bool = False) -> str:
        """Invent a pronounceable word of one or two syllables on this side of the split."""
        while True:
            if self.split == "train" and self.chance(SCRAMBLED_PART):
                word = self._letters(self.rng.randint(3, 8))
            else:
                word = "".join(self._syllable() for _ in range(self.rng.choice((1, 2, 2, 2))))
            if 3 <= len(word) <= 9 and is_heldout_value(word) == (self.split == "heldout"):
                return word.capitalize() if capital else word

    def number(self, low: int, high: int) -> int:
        """Choose an integer in [low, high] on this side of the split, if it has any."""
        wanted = self.split == "heldout"
        drawn = low
        for _ in range(DRAW_TRIES):
            drawn = self.rng.randint(low, high)
            if is_heldout_value(str(drawn)) == wanted:
                break
        return drawn

    def _letters(self, count: int) -> str:
        """Draw lower-case letters at random, so that training meets every pair of them."""
        while True:
            word = "".join(self.rng.choices(string.ascii_lowercase, k=count))
            if is_heldout_value(word) == (self.split == "heldout"):
                return word

    def _syllable(self) -> str:
        choice = self.rng.choice
        return choice(SYLLABLE_STARTS) + choice(SYLLABLE_CORES) + choice(SYLLABLE_ENDS)
