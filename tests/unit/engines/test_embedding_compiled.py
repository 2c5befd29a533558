"""What compiles a model's layers on a GPU, on a CPU whose attention stands in for the GPU's."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, ModernBertConfig, Qwen3Config

from omai_ray.catalog import ModelSpec
from omai_ray.engines.embedding import attention, compiled, encoder
from omai_ray.engines.embedding.compiled import repeated_layers
from omai_ray.engines.embedding.engine import EmbeddingEngine
from omai_ray.engines.embedding.varlen import attend_varlen
from tests.checkpoints import save_embedding_checkpoint

pytestmark = pytest.mark.filterwarnings("default")  # what torch's compiler warns of is its own

LENGTHS = (1, 48, 2, 2, 17, 33, 48, 5, 9, 40, 1, 31)


def attend_one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float,
    causal: bool,
    window: int,
) -> Tensor:
    """Compute what the GPU's kernel does."""
    out = torch.empty_like(query)
    for start, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True):
        assert 0 < end - start <= longest
        places = torch.arange(end - start)
        distance = places[:, None] - places
        seen = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            seen &= distance >= 0
        if window >= 0:
            seen &= distance.abs() <= window
        states = [part[start:end].transpose(0, 1)[None] for part in (query, key, value)]
        shared = query.shape[1] != key.shape[1]
        (attended,) = scaled_dot_product_attention(*states, seen, scale=scale, enable_gqa=shared)
        out[start:end] = attended.transpose(0, 1)
    return out


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have engines on the CPU take the way of a GPU; graphs are traced, and run by torch itself."""
    attend_varlen.register_kernel("cpu", attend_one_by_one)
    monkeypatch.setattr(attention, "has_varlen", lambda _: True)
    monkeypatch.setattr(compiled, "has_varlen", lambda _: True)
    monkeypatch.setattr(encoder, "prepare", lambda *_: None)
    torch._dynamo.reset()
    eager = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", eager)
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def load(source: Path) -> EmbeddingEngine:
    """Return an engine in float32."""
    return EmbeddingEngine(
        ModelSpec(name="m", task="embedding", source=str(source), dtype="float32")
    )


def inputs(*lengths: int) -> list[list[int]]:
    """Return random ids of these lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(4, 50, length).tolist() for length in lengths]


@pytest.mark.parametrize(
    ("config", "options", "kinds"),
    [
        (BertConfig, {}, 1),
        (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 16, "pooling": "lasttoken"}, 1),
        (ModernBertConfig, {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3}, 6),
    ],
)
def test_layers_of_a_kind_are_compiled_once_for_all_sizes(
    config: Any,
    options: dict[str, Any],
    kinds: int,
    tmp_path: Path,
    gpu_path: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One graph for each kind of layer, whole, and no other for other numbers of tokens."""
    save_embedding_checkpoint(tmp_path, config=config, num_hidden_layers=4, **options)
    with caplog.at_level(logging.WARNING, "omai_ray"):
        engine = load(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("omai_ray")]
    layers = repeated_layers(engine._encoder._model)
    assert len(layers) == 4
    found = engine.embed_ids(inputs(*LENGTHS))
    for lengths in ((1,), (1,) * 31, (48,) * 7, (2, 3), (40,)):
        engine.embed_ids(inputs(*lengths))
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= kinds
    for layer in layers:
        del layer.forward
    np.testing.assert_allclose(engine.embed_ids(inputs(*LENGTHS)), found, atol=1e-5)


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_model_that_cannot_be_compiled_runs_as_it_is(
    fault: str,
    tmp_path: Path,
    gpu_path: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a warning that says why."""

    def compile_badly(forward: Any, **_: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            if fault == "raises":
                raise RuntimeError("Failed to find C compiler")
            return forward(*arguments, **options) + 1

        return run

    monkeypatch.setattr(torch, "compile", compile_badly)
    engine = load(save_embedding_checkpoint(tmp_path))
    why = "RuntimeError: Failed to find C compiler" if fault == "raises" else "values differ"
    assert f"bert cannot be compiled for this GPU, so it is slower: {why}" in caplog.text
    assert not any("forward" in vars(layer) for layer in repeated_layers(engine._encoder._model))
    assert np.isfinite(engine.embed_ids(inputs(*LENGTHS))).all()


def test_only_lists_of_one_kind_of_layer_are_repeated() -> None:
    """The outermost one; a list of several kinds is none."""
    inner = nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)]), nn.ModuleList([nn.Linear(1, 1)])])
    mixed = nn.ModuleList([nn.Linear(1, 1), nn.Identity()])
    assert repeated_layers(nn.Sequential(mixed, inner)) == list(inner)
    assert repeated_layers(mixed) == []
