"""Windows of tokens over a text that is longer than a model takes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A part of a text, as an encoder is run on it.

    ids: the part's, with those that are put around every text; compact, as texts may be long.
    start, end: characters of the text that the part is made of.
    """

    ids: array[int]
    start: int
    end: int


def cut(
    count: int, span: Callable[[int], Span], size: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the windows over `count` tokens, in order; they cover every token.

    span: start and end of a token in characters. size: most tokens of a window, at least 1.
    overlap: how many tokens of a window the next one begins with. Tokens that share a character
    are not parted, for which a window or an overlap may be shorter; only where such tokens are
    more than a window holds, their character is in several.
    """

    def parts(token: int) -> bool:
        return 0 < token < count and span(token - 1)[1] > span(token)[0]

    first = done = 0
    while done < count:
        end = min(first + size, count)
        whole = end
        while whole > first and parts(whole):
            whole -= 1
        end = whole if whole > first else end
        if end <= done:  # beside the overlap there is no room for the next character
            first = done
            continue
        yield first, end
        done, first = end, max(end - overlap, first + 1)
        while first < done and parts(first):
            first += 1
