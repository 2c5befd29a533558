"""Chunks of texts that are longer than the model takes: which they are, and one vector of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from omai_ray.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ChunkPool = Literal["mean"]


@dataclass(frozen=True)
class Chunking:
    """How long texts are cut.

    tokens: most of a chunk, prompt and special tokens counted; None is the model's context.
    overlap: tokens of a chunk that the next one begins with. pool: one vector a row, of those of
    its chunks; None writes a row for each chunk.
    """

    tokens: int | None = None
    overlap: int = 0
    pool: ChunkPool | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError, naming the argument, for a value that cannot be used."""
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"chunk-tokens is {self.tokens}; at least 1 is needed")
        if self.overlap < 0:
            raise ConfigError(f"chunk-overlap is {self.overlap}; it cannot be below 0")
        if self.tokens is not None and self.overlap >= self.tokens:
            raise ConfigError(
                f"chunk-overlap is {self.overlap}; it must be below chunk-tokens ({self.tokens})"
            )

    def size(self, context: int) -> int:
        """Return most tokens of a chunk for a model of that context."""
        return self.tokens or context

    def check_model(self, context: int, tokens_around: int) -> None:
        """Raise ConfigError where a model cannot be given such chunks.

        tokens_around: of the prompt and the special ones, which every chunk has.
        """
        size = self.size(context)
        if size > context:
            raise ConfigError(f"chunk-tokens is {size}; the model accepts {context}")
        room = size - tokens_around
        if room <= self.overlap:
            raise ConfigError(
                f"chunks of {size} tokens have {max(room, 0)} of the text, as {tokens_around} are "
                f"the prompt and special tokens; that must be above chunk-overlap ({self.overlap})"
            )


def number_chunks(
    firsts: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]
) -> dict[str, npt.NDArray[np.int32]]:
    """Return the columns that tell chunks apart: the number in the row, from 0, and characters.

    firsts [R]: where each row's chunks begin. spans [N]: each chunk's start and end.
    """
    import numpy as np

    counts = np.diff(firsts, append=len(spans))
    numbers = np.arange(len(spans)) - np.repeat(firsts, counts)
    starts, ends = np.array(spans, dtype=np.int32).reshape(-1, 2).T
    return {"chunk": numbers.astype(np.int32), "chunk_start": starts, "chunk_end": ends}


def pool_mean(
    vectors: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    firsts: npt.NDArray[np.int64],
    unit_length: bool,
) -> npt.NDArray[np.float32]:
    """Average the vectors of each row's chunks by their weights.

    vectors [N, D], of adjacent chunks for each row; weights [N]; firsts [R]: where each row's
    begin. unit_length: scale the averages to length 1. A row of one chunk has that chunk's vector
    unchanged. Returns [R, D].
    """
    import numpy as np

    counts = np.diff(firsts, append=len(vectors))
    pooled = vectors[firsts]
    several = counts > 1
    if not several.any():
        return pooled
    sums = np.add.reduceat(vectors * weights[:, None], firsts, axis=0)[several]
    if unit_length:
        with np.errstate(invalid="ignore"):  # nothing is of no length but what cancels out
            pooled[several] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    else:
        pooled[several] = sums / np.add.reduceat(weights, firsts)[several, None]
    return pooled
