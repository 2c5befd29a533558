"""What a bulk job needs of an embedding engine, and how its actors build one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from omai_ray.catalog import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Shortener(Protocol):
    """Cuts ids to the model's context."""

    def shorten(self, ids: list[int]) -> list[int]:
        """Return at most `context` ids, the closing special token kept."""
        ...


class Engine(Protocol):
    """An embedding model, loaded: `omai_ray.engines.embedding.engine.EmbeddingEngine`."""

    context: int
    dimension: int

    @property
    def tokenizer(self) -> Shortener:
        """The tokenizer, which knows how the model's inputs end."""
        ...

    @property
    def int8_cosine(self) -> str:
        """How near vectors made in int8 are to float32; empty where they are not in int8."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides a vector's value."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What the fingerprint is made of."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, never shortened."""
        ...

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return float32 [N, D], rows in the order of the inputs."""
        ...


@dataclass(frozen=True)
class EngineFacts:
    """What the driver must know of a model that only the actors load."""

    fingerprint: str
    provenance: dict[str, Any]
    dimension: int
    int8_cosine: str


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
    return EngineFacts(engine.fingerprint, engine.provenance, engine.dimension, engine.int8_cosine)
