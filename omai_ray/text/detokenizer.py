"""Tokens to text as they arrive, and the strings that end it."""

from __future__ import annotations

from collections.abc import Sequence

from omai_ray.text.tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd"
# A UTF-8 character has at most 4 bytes, so at most 4 byte-level tokens; beyond that the
# replacement character is the model's own.
_LONGEST_CHARACTER = 4


class Detokenizer:
    """The text of one growing sequence, never half a character.

    Decodes a short window only: the tokens of the last piece are context for the next, because
    decoders join words by what precedes them. Where a window ends in half a character, the text
    before it is told, and the window stays until a character ends with a token.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt_ids[-_LONGEST_CHARACTER:])
        self._context = len(self._window)
        self._told = len(self._tokenizer.decode(self._window))
        self._waited = 0

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that these tokens complete, empty while a character is unfinished."""
        return "".join(map(self._push, ids))

    def _push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        complete = text.rstrip(_REPLACEMENT)
        if complete == text:
            return self._tell(text)
        if len(complete) > self._told:
            told, self._told, self._waited = complete[self._told :], len(complete), 1
            return told
        self._waited += 1
        return self._tell(text) if self._waited >= _LONGEST_CHARACTER else ""

    def flush(self) -> str:
        """Return what is held back, at the end of the sequence."""
        return self._tell(self._tokenizer.decode(self._window))

    def _tell(self, text: str) -> str:
        """Return what is new in the whole window's text; keep its last tokens as context."""
        told = text[self._told :]
        if not told:  # a special token, which would be no context
            return ""
        self._window = self._window[self._context :]
        self._context, self._waited = len(self._window), 0
        self._told = len(self._tokenizer.decode(self._window))
        return told


class StopMatcher:
    """Finds the first stop string, also where it spans pieces, and never lets part of it out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return the text that is certain to precede any stop string; sets `stopped`."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)  # the first to be complete, however the text was cut up
            told, self._held = self._held[:start], ""
            return told
        keep = self._unsure()
        told, self._held = self._held[: len(self._held) - keep], self._held[-keep:] if keep else ""
        return told

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        told, self._held = self._held, ""
        return told

    def _unsure(self) -> int:
        return max((overlap(self._held, stop) for stop in self._stops), default=0)


def overlap(text: str, marker: str) -> int:
    """Return the length of the longest ending of `text` that `marker` begins with, itself aside."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0
