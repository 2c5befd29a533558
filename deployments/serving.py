"""A catalog's models as the API sees them: their tokenizers, and what answers for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omai_ray.api.backends import ServedChat, ServedEmbedding, ServedModels, ServedRerank
from omai_ray.catalog import locate
from omai_ray.settings import Settings
from omai_ray.text.chat_template import ChatTokenizer
from omai_ray.text.embedding_input import EmbeddingTokenizer, PairTokenizer


def serve_models(settings: Settings, backends: Mapping[str, Any]) -> ServedModels:
    """Return the catalog's models with their tokenizers and backends. Blocking: reads files."""
    catalog = settings.catalog
    chats: dict[str, ServedChat] = {}
    embeddings: dict[str, ServedEmbedding] = {}
    reranks: dict[str, ServedRerank] = {}
    for spec in settings.models:
        name, backend = spec.name, backends[spec.name]
        files = locate(spec, weights=False)
        created = int((files / "config.json").stat().st_mtime)
        if spec.task == "chat":
            chats[name] = ServedChat(spec, ChatTokenizer(files, spec.context), backend, created)
        elif spec.task == "rerank":
            reranks[name] = ServedRerank(spec, PairTokenizer(files, spec.context), backend, created)
        else:
            tokenizer = EmbeddingTokenizer(files, spec.context, spec.prompt)
            embeddings[name] = ServedEmbedding(spec, tokenizer, backend, created)
    for name, base in catalog.bases.items():
        chats[name] = replace(chats[base], spec=catalog.models[name], adapter=name)
    return ServedModels(catalog, chats, embeddings, reranks)
