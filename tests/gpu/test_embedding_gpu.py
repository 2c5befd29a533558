"""The embedding engine on an NVIDIA GPU; needs neither Ray nor FastAPI.

On a machine that has only torch, transformers, pydantic and pytest:
`PYTHONPATH=. python -m pytest -c /dev/null --rootdir=. --noconftest -p no:cacheprovider tests/gpu`.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    MistralConfig,
    ModernBertConfig,
    Qwen3Config,
    RobertaConfig,
)

from omai_ray.catalog import ModelSpec
from omai_ray.engines.embedding.batcher import EmbeddingBatcher
from omai_ray.engines.embedding.engine import EmbeddingEngine, Vectors
from omai_ray.engines.embedding.packing import Ids
from omai_ray.errors import ServerError
from tests.checkpoints import save_embedding_checkpoint, write_modules

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")

MODELS: dict[str, dict[str, Any]] = {
    "bert": {"config": BertConfig},
    "roberta": {"config": RobertaConfig, "max_position_embeddings": 66},
    "modernbert": {
        "config": ModernBertConfig,
        "local_attention": 8,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "qwen3": {
        "config": Qwen3Config,
        "pooling": "lasttoken",
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "mistral": {"config": MistralConfig, "sliding_window": 8, "num_key_value_heads": 2},
}
LENGTHS = (1, 48, 2, 2, 17, 33, 48, 5, 9, 40, 1, 31)


def load(source: Path, gpus: int = 1, **fields: Any) -> EmbeddingEngine:
    """Return an engine, on the GPU unless `gpus` is 0."""
    spec = {"name": "m", "task": "embedding", "source": str(source), "num_gpus": gpus, **fields}
    return EmbeddingEngine(ModelSpec(**spec))


def inputs(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Return random ids of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 50, length).tolist() for length in lengths]


def cosines(found: Vectors, expected: Vectors) -> Any:
    """Return the cosine of each row to its own in the other."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return (found * expected).sum(1) / norms


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingEngine:
    """Return a small BERT in bfloat16."""
    directory = save_embedding_checkpoint(tmp_path_factory.mktemp("bert"), width=64)
    return load(directory)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near_float32_on_a_cpu(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Absolute, offset and rotary positions, windows, causal attention, shared heads."""
    save_embedding_checkpoint(tmp_path, width=64, **MODELS[name])
    reference = load(tmp_path, 0, dtype="float32").embed_ids(inputs(*LENGTHS))
    with caplog.at_level(logging.WARNING, "omai_ray"):
        engine = load(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("omai_ray")]
    assert engine._encoder.packs
    assert cosines(engine.embed_ids(inputs(*LENGTHS)), reference).min() >= 0.999


def test_float32_equals_that_of_a_cpu(tmp_path: Path) -> None:
    """Without flash attention, which has no float32."""
    save_embedding_checkpoint(tmp_path, width=64)
    reference = load(tmp_path, 0, dtype="float32").embed_ids(inputs(*LENGTHS))
    engine = load(tmp_path, dtype="float32")
    assert engine._encoder.packs
    assert cosines(engine.embed_ids(inputs(*LENGTHS)), reference).min() >= 0.99999


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "weightedmean", "mean_sqrt_len_tokens"])
def test_poolings_and_modules_run_on_the_gpu(pooling: str, tmp_path: Path) -> None:
    """Dense weights are on the GPU too, and so is the count of a prompt's tokens."""
    save_embedding_checkpoint(tmp_path, pooling=pooling)
    settings = {"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": False}
    prompts = '{"prompts": {"query": "the quick "}, "default_prompt_name": "query"}'
    (tmp_path / "config_sentence_transformers.json").write_text(prompts)
    torch.manual_seed(0)
    weights = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    dense = {"in_features": 32, "out_features": 8, "activation_function": "torch.nn.Tanh"}
    write_modules(tmp_path, ("Pooling", settings, {}), ("Dense", dense, weights))
    reference, engine = load(tmp_path, 0, dtype="float32"), load(tmp_path)
    ids = reference.tokenize(["brown fox jumps", "lazy dog", "Hello, how are you?"])
    assert cosines(engine.embed_ids(ids), reference.embed_ids(ids)).min() >= 0.999


def test_packed_equals_one_by_one(bert: EmbeddingEngine) -> None:
    """Whatever is beside it in a step, an input has the same vector, to bfloat16."""
    ids = inputs(*LENGTHS)
    alone = np.concatenate([bert.embed_ids([one]) for one in ids])
    assert cosines(bert.embed_ids(ids), alone).min() >= 0.9999


@pytest.mark.parametrize("budget", [1, 7, 48, 500])
def test_rows_keep_their_order_over_many_steps(
    bert: EmbeddingEngine, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results come back a step late; long and short inputs, alike ones next to each other."""
    ids = inputs(*LENGTHS * 20, seed=1)
    expected = bert.embed_ids(ids)
    monkeypatch.setattr(bert, "step_tokens", budget)
    assert cosines(bert.embed_ids(ids), expected).min() >= 0.9999


def test_no_inputs(bert: EmbeddingEngine) -> None:
    """No row."""
    assert bert.embed_ids([]).shape == (0, 64)


def test_a_step_never_waits_for_the_gpu(bert: EmbeddingEngine) -> None:
    """A forward with its pooling is only started; torch raises where one waits."""
    arrays = bert.check(inputs(*LENGTHS))
    lengths = np.array(LENGTHS)
    bert._forward(arrays, lengths)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bert._forward(arrays, lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Broken(nn.Module):
    """An encoder's head that fails on one length."""

    def __init__(self, engine: EmbeddingEngine) -> None:
        super().__init__()
        self._forward = engine._forward

    def __call__(self, arrays: list[Ids], lengths: Any) -> Any:
        if 13 in lengths:
            raise RuntimeError("CUDA out of memory")
        return self._forward(arrays, lengths)


async def _serve(engine: EmbeddingEngine) -> tuple[Any, Any, Any]:
    batcher = EmbeddingBatcher(engine, max_queued=100)
    tasks = [asyncio.create_task(batcher.embed(inputs(*LENGTHS, seed=n))) for n in range(8)]
    poison = asyncio.create_task(batcher.embed(inputs(13)))
    gone = asyncio.create_task(batcher.embed(inputs(*LENGTHS * 50)))
    await asyncio.sleep(0)
    gone.cancel()
    good = await asyncio.gather(*tasks)
    failed, left = await asyncio.gather(poison, gone, return_exceptions=True)
    batcher.check_health()
    return good, failed, left


def test_a_poison_input_and_a_gone_caller_harm_nobody(
    bert: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of their steps is answered, with the vectors that it has alone."""
    expected = [bert.embed_ids(inputs(*LENGTHS, seed=n)) for n in range(8)]
    monkeypatch.setattr(bert, "_forward", Broken(bert))
    good, failed, left = asyncio.run(_serve(bert))
    assert isinstance(failed, ServerError)
    assert isinstance(left, asyncio.CancelledError)
    for found, alone in zip(good, expected, strict=True):
        assert cosines(found, alone).min() >= 0.9999
