"""What a bulk job needs of an embedding engine, and how its actors build one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from omai_ray.catalog import ModelSpec
from omai_ray.text.windows import Window

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Tokenizer(Protocol):
    """Knows what a model's inputs are: `omai_ray.text.embedding_input.EmbeddingTokenizer`."""

    @property
    def tokens_around(self) -> int:
        """How many tokens the prompt and the special ones are."""
        ...

    def windows(self, texts: Sequence[str], size: int, overlap: int) -> list[list[Window]]:
        """Return each text's parts of at most `size` tokens, special ones counted."""
        ...

    def shorten(self, ids: list[int]) -> list[int]:
        """Return at most `context` ids, the closing special token kept."""
        ...


class TextEngine(Protocol):
    """The part of an engine that needs no weights: from texts to ids."""

    context: int

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which knows what is put around a text."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, never shortened."""
        ...


class Engine(TextEngine, Protocol):
    """An embedding model, loaded: `omai_ray.engines.embedding.engine.EmbeddingEngine`.

    tokens, computed_tokens: what it was run on since it was loaded, without and with padding.
    """

    dimension: int
    tokens: int
    computed_tokens: int

    @property
    def int8_cosine(self) -> str:
        """How near vectors made in int8 are to float32; empty where they are not in int8."""
        ...

    @property
    def unit_length(self) -> bool:
        """Whether the model's vectors are scaled to length 1."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides a vector's value."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What the fingerprint is made of."""
        ...

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return float32 [N, D], rows in the order of the inputs."""
        ...


@dataclass(frozen=True)
class EngineFacts:
    """What the driver must know of a model that only the actors load.

    provenance: as JSON has it, so that it equals what a record says.
    """

    fingerprint: str
    provenance: dict[str, Any]
    dimension: int
    unit_length: bool
    int8_cosine: str
    context: int
    tokens_around: int


def actor_threads(spec: ModelSpec) -> int:
    """Return the CPU threads of one actor: those of the CPUs that its model reserves."""
    return max(1, int(spec.num_cpus))


def build_engine(spec: ModelSpec) -> Engine:
    """Load the engine that also serves online. Raises CheckpointError or ConfigError."""
    import transformers

    from omai_ray.engines.device import limit_threads
    from omai_ray.engines.embedding.engine import EmbeddingEngine

    transformers.utils.logging.disable_progress_bar()
    limit_threads(spec.num_cpus)
    return EmbeddingEngine(spec)


def describe_engine(engine: Engine) -> EngineFacts:
    """Return the facts of a loaded engine."""
    return EngineFacts(
        fingerprint=engine.fingerprint,
        provenance=json.loads(json.dumps(engine.provenance)),
        dimension=engine.dimension,
        unit_length=engine.unit_length,
        int8_cosine=engine.int8_cosine,
        context=engine.context,
        tokens_around=engine.tokenizer.tokens_around,
    )
