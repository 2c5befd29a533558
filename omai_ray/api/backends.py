"""What the API asks of whoever runs the models: Serve replicas, or an engine in the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from omai_ray.catalog import Catalog, ModelSpec, Task
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.text.chat_template import ChatTokenizer
from omai_ray.text.embedding_input import EmbeddingTokenizer, PairTokenizer


class ChatBackend(Protocol):
    """Answers chat jobs for one model."""

    def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain. Leaving early cancels. Raises OMAiError subclasses."""

    async def answer(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        """Complete the choices, one for each of the job's n. Raises OMAiError subclasses.

        Where it is cancelled, the choices have what was generated until then.
        """

    async def ready(self) -> None:
        """Return once a replica can answer."""


class EmbeddingBackend(Protocol):
    """Embeds for one model, or scores pairs of texts."""

    async def embed(self, inputs: list[list[int]], account: str) -> npt.NDArray[np.float32]:
        """Return float32 [N, D] for N inputs of token ids. Raises OMAiError subclasses.

        Of a reranker, [N, 1]: how relevant each pair's document is to its query.
        account: whose turn it is where several wait.
        """

    async def ready(self) -> None:
        """Return once a replica can answer."""


@dataclass(frozen=True)
class ServedChat:
    """A chat model as the API sees it; adapter: the one it answers with, where it is one."""

    spec: ModelSpec
    tokenizer: ChatTokenizer
    backend: ChatBackend
    created: int
    adapter: str = ""


@dataclass(frozen=True)
class ServedEmbedding:
    """An embedding model as the API sees it."""

    spec: ModelSpec
    tokenizer: EmbeddingTokenizer
    backend: EmbeddingBackend
    created: int


@dataclass(frozen=True)
class ServedRerank:
    """A reranker as the API sees it."""

    spec: ModelSpec
    tokenizer: PairTokenizer
    backend: EmbeddingBackend
    created: int


ServedModel = ServedChat | ServedEmbedding | ServedRerank


@dataclass
class ServedModels:
    """Every model of the catalog, by task and name. Lookups raise ModelNotFound."""

    catalog: Catalog
    chats: dict[str, ServedChat]
    embeddings: dict[str, ServedEmbedding]
    reranks: dict[str, ServedRerank] = field(default_factory=dict)

    def become(self, other: ServedModels) -> None:
        """Take over another catalog's models; requests that run keep the model that they have."""
        self.catalog, self.chats = other.catalog, other.chats
        self.embeddings, self.reranks = other.embeddings, other.reranks

    def chat(self, name: str) -> ServedChat:
        """Return the chat model that `name`, or its alias, means."""
        return self.chats[self.catalog.resolve(name, "chat").name]

    def embedding(self, name: str) -> ServedEmbedding:
        """Return the embedding model that `name`, or its alias, means."""
        return self.embeddings[self.catalog.resolve(name, "embedding").name]

    def any(self, name: str) -> ServedModel:
        """Return the model that `name`, or its alias, means, whatever it does."""
        spec = self.catalog.resolve(name)
        by_task: dict[Task, Mapping[str, ServedModel]] = {
            "chat": self.chats,
            "embedding": self.embeddings,
            "rerank": self.reranks,
        }
        return by_task[spec.task][spec.name]

    def all(self) -> list[ServedModel]:
        """Return every model in the catalog's order."""
        return [self.any(name) for name in self.catalog.models]
