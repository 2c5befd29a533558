"""Answers of a given form: which tokens may come next, by llguidance. Free of torch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from omai_ray.engines.chat.protocol import Grammar
from omai_ray.errors import InvalidRequest, ServerError

_KEPT = 128  # compiled grammars


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return bool [V], True for tokens that may come next. Raises ServerError for none."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[: self._vocab_size]
        if self._matcher.is_error() or not bits.any():
            raise ServerError("The answer's grammar allows no further token.")
        return bits.view(np.bool_)

    def accept(self, token: int) -> bool:
        """Go on by a token that was allowed; return whether the answer is complete."""
        self._matcher.consume_token(token)
        return self._matcher.is_stopped()


class Grammars:
    """Compiles grammars for one model's tokens, and keeps the last ones.

    tokenizer: a tokenizer.json. stops: tokens that end an answer.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, stops: Iterable[int]) -> None:
        self._tokenizer = LLTokenizer(
            str(tokenizer), n_vocab=vocab_size, eos_token=sorted(stops) or None
        )
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, grammar: Grammar) -> Constraint:
        """Return a grammar's beginning. Takes milliseconds, more for a large one not seen before.

        Raises InvalidRequest, with what is wrong, where it cannot be compiled.
        """
        with self._lock:
            matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = matcher
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return Constraint(matcher.deep_copy(), self._vocab_size)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            source = _source(grammar)
        except ValueError as error:
            raise InvalidRequest(
                f"Invalid '{grammar.param}': {error}", param=grammar.param
            ) from None
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            message = matcher.get_error().splitlines()[0]
            raise InvalidRequest(f"Invalid '{grammar.param}': {message}", param=grammar.param)
        return matcher


def _source(grammar: Grammar) -> str:
    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(grammar.source)
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    return LLMatcher.grammar_from_lark(grammar.source)
