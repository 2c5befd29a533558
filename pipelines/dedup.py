"""Embed what is the same once: within a unit of work, and with a cache across units and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.bisection import bisect
from pipelines.engine import Engine
from pipelines.vector_cache import VectorCache

MEMORY_BYTES = 64 << 20

Vectors = npt.NDArray[np.float32]


class OnceEmbedder:
    """Embeds inputs of one unit, each distinct one once, by the hash of its ids.

    Which inputs share a forward depends on the unit's inputs alone, and so do the vectors, as long
    as there is no cache: in bfloat16 the last bits change with the number of inputs in a forward.

    reused: inputs so far that were not computed. At most MEMORY_BYTES of vectors are kept.
    """

    def __init__(self, engine: Engine, cache: VectorCache | None = None) -> None:
        self.engine, self._cache = engine, cache
        self._kept: dict[bytes, Vectors] = {}
        self._most = max(1, MEMORY_BYTES // (4 * engine.dimension))
        self.reused = 0

    def embed(self, inputs: Sequence[Sequence[int]]) -> tuple[Vectors, dict[int, Exception]]:
        """Return float32 [N, D], and the error of each input that the engine fails on: NaN."""
        keys = [_key(ids) for ids in inputs]
        known = self._known(dict.fromkeys(keys))
        fresh = {key: ids for key, ids in zip(keys, inputs, strict=True) if key not in known}
        made, errors = self._compute(fresh)
        known |= made
        missing = np.full(self.engine.dimension, np.nan, dtype=np.float32)
        vectors = np.empty((len(keys), self.engine.dimension), dtype=np.float32)
        for row, key in enumerate(keys):
            vectors[row] = known.get(key, missing)
        failed = {row: errors[key] for row, key in enumerate(keys) if key in errors}
        self.reused += len(keys) - len(made) - len(failed)
        return vectors, failed

    def _known(self, keys: Sequence[bytes] | dict[bytes, None]) -> dict[bytes, Vectors]:
        known = {key: self._kept[key] for key in keys if key in self._kept}
        if self._cache is not None:
            found = self._cache.get([key for key in keys if key not in known])
            self._keep(found)
            known |= found
        return known

    def _compute(
        self, fresh: dict[bytes, Sequence[int]]
    ) -> tuple[dict[bytes, Vectors], dict[bytes, Exception]]:
        keys = list(fresh)
        made: dict[bytes, Vectors] = {}
        errors: dict[bytes, Exception] = {}
        for first, count, result in bisect(self.engine.embed_ids, list(fresh.values())):
            if isinstance(result, Exception):
                errors[keys[first]] = result
            else:
                made |= zip(keys[first : first + count], result, strict=True)
        self._keep(made)
        if self._cache is not None:
            self._cache.put({key: made[key] for key in made if np.isfinite(made[key]).all()})
        return made, errors

    def _keep(self, vectors: dict[bytes, Vectors]) -> None:
        """Remember vectors, in place of the oldest where they become too many."""
        self._kept |= {key: vector.copy() for key, vector in vectors.items()}
        for key in list(self._kept)[: max(0, len(self._kept) - self._most)]:
            del self._kept[key]


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()
