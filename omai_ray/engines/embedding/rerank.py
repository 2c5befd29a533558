"""The reranking engine: token ids of a query with a document in, a score each out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.checkpoint import check_safe
from omai_ray.engines.embedding.cross_encoder import CrossEncoder
from omai_ray.engines.embedding.engine import TokenEngine
from omai_ray.engines.embedding.head import named_activation
from omai_ray.engines.embedding.packing import Ids
from omai_ray.errors import CheckpointError
from omai_ray.text.embedding_input import PairTokenizer, encoder_directory, read_modules
from omai_ray.text.tokenizer import read_json

_OLDEST = "sbert_ce_default_activation_function"  # before sentence-transformers 4


class RerankEngine(TokenEngine):
    """A cross-encoder checkpoint, loaded and ready; its rows are one score each.

    Raises CheckpointError or ConfigError where the model cannot be used.
    """

    dimension = 1

    def __init__(self, spec: ModelSpec) -> None:
        directory = locate(spec)
        files = encoder_directory(directory)
        check_safe(files)
        self._activation = read_activation(directory)
        self.tokenizer = PairTokenizer(directory, spec.context)
        super().__init__(spec, self.tokenizer.context)
        self._model = CrossEncoder(files, self.tokenizer, self._dtype, self._device)
        self._packs = self._model.packs
        self.vocab_size = self._model.vocab_size
        self._fit_steps(self._model.weights)

    @torch.inference_mode()
    def _forward(self, inputs: list[Ids], lengths: npt.NDArray[np.int64]) -> Tensor:
        scores: Tensor = self._activation(self._model(inputs))
        return scores


def read_activation(directory: Path) -> nn.Module:
    """Return what makes scores of a checkpoint's logits: what it states, or else a sigmoid.

    Raises CheckpointError for an activation, or a module after the transformer, that is not
    supported.
    """
    modules = read_modules(directory)
    for kind, _ in modules:
        if kind != "Transformer":
            raise CheckpointError(
                f"{directory / 'modules.json'}: module '{kind}' is not supported in a reranker "
                "(supported: Transformer)"
            )
    layout = directory / "config_sentence_transformers.json"
    files = encoder_directory(directory) / "config.json"
    config = read_json(files)
    newer = config.get("sentence_transformers") or {}
    places = {
        f"{layout}: activation_fn": read_json(layout).get("activation_fn") if modules else None,
        f"{files}: sentence_transformers.activation_fn": newer.get("activation_fn"),
        f"{files}: {_OLDEST}": config.get(_OLDEST),
    }
    for where, given in places.items():
        if given:
            return named_activation(str(given), where)
    return nn.Sigmoid()
