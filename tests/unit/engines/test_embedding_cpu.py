"""What makes a CPU fast: prepared and 8-bit layers, attention in bfloat16, lanes."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import (
    AlbertConfig,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from omai_ray.catalog import ModelSpec
from omai_ray.engines.device import choose_dtype, has_bfloat16, has_int8
from omai_ray.engines.embedding import engine as engine_module
from omai_ray.engines.embedding.engine import EmbeddingEngine
from omai_ray.engines.embedding.half_attention import attend_half
from omai_ray.engines.embedding.int8 import Int8Chain, Int8Linear
from omai_ray.engines.embedding.lanes import Lanes
from omai_ray.engines.embedding.packing import Packing
from omai_ray.engines.linear import JointLinear, PackedLinear
from omai_ray.engines.wiring import rewire, watch
from omai_ray.errors import ConfigError
from tests.checkpoints import save_embedding_checkpoint

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this CPU has no VNNI")
TEXTS = ["Hello", "the quick brown fox jumps over", "dog dog", "", "fox " * 30, "Hello dog"]
DISTILBERT = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}


def spec(source: Path | str, **fields: Any) -> ModelSpec:
    """Return the catalog entry of an embedding model."""
    return ModelSpec(name="m", task="embedding", source=str(source), **fields)


def embed(engine: EmbeddingEngine, texts: list[str] = TEXTS) -> np.ndarray[Any, Any]:
    """Return the vectors of texts, cut to the context."""
    return engine.embed_ids([engine.tokenizer.shorten(ids) for ids in engine.tokenize(texts)])


def kinds(engine: EmbeddingEngine) -> list[type[nn.Module]]:
    """Return the types of the model's layers."""
    return [type(module) for module in engine._encoder._model.modules()]


def test_prepared_layers_give_the_same_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear layers are prepared, those of one tensor and activations joined to one product."""
    save_embedding_checkpoint(tmp_path)
    prepared = EmbeddingEngine(spec(tmp_path, dtype="float32"))
    monkeypatch.setattr("omai_ray.engines.prepare.has_onednn", lambda: False)
    plain = EmbeddingEngine(spec(tmp_path, dtype="float32"))
    assert nn.Linear in kinds(plain)
    assert PackedLinear not in kinds(plain)
    assert nn.Linear not in kinds(prepared)
    assert kinds(prepared).count(PackedLinear) == 7
    assert kinds(prepared).count(JointLinear) == 6  # query, key and value of two layers
    assert kinds(prepared).count(nn.Identity) == 2
    np.testing.assert_allclose(embed(plain), embed(prepared), atol=1e-5)


def test_int8_with_a_gpu_is_refused() -> None:
    """Its kernels are a CPU's."""
    with pytest.raises(ConfigError, match="num_gpus: 0"):
        choose_dtype("int8", torch.device("cuda"), bfloat16_cpu=True)


@pytest.mark.parametrize("wrong", [True, False])
def test_layers_that_cannot_be_prepared_stay_as_they_are(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: bool,
) -> None:
    """Whether the vectors would differ or the model fails: one warning, and the right vectors."""
    save_embedding_checkpoint(tmp_path)
    expected = embed(EmbeddingEngine(spec(tmp_path, dtype="float32")))

    def forward(self: PackedLinear, values: torch.Tensor) -> torch.Tensor:
        if wrong:
            return torch.zeros(*values.shape[:-1], self.weight.shape[0])
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(PackedLinear, "forward", forward)
    with caplog.at_level(logging.WARNING):
        engine = EmbeddingEngine(spec(tmp_path, dtype="float32"))
    (said,) = [r.getMessage() for r in caplog.records if "cannot be prepared" in r.getMessage()]
    assert ("values differ" if wrong else "could not create a primitive") in said
    assert PackedLinear not in kinds(engine)
    assert nn.Identity not in kinds(engine)
    np.testing.assert_allclose(expected, embed(engine), atol=1e-5)


class Block(nn.Module):
    """A feed-forward block with a gate beside it that reads what `up` reads."""

    def __init__(self, activation: nn.Module, spied: bool) -> None:
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)
        self.activation, self.spy = activation, nn.Linear(16, 8) if spied else None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return a block's output."""
        inner = self.activation(self.up(values))
        out: torch.Tensor = self.down(inner) * self.gate(values)
        return out if self.spy is None else out + self.spy(inner)


@pytest.mark.parametrize(
    ("activation", "found"),
    [
        (nn.GELU(), [("gelu", "none")]),
        (nn.GELU(approximate="tanh"), [("gelu", "tanh")]),
        (nn.ReLU(), [("relu", "")]),
        (nn.Hardswish(), []),
        (nn.Softmax(-1), []),
    ],
)
def test_chains_are_found_by_what_a_forward_does(
    activation: nn.Module, found: list[tuple[str, str]]
) -> None:
    """Two layers with an activation between that oneDNN has; none is known by its name."""
    block = Block(activation, spied=False)
    wiring = watch(block, lambda: block(torch.randn(3, 8)))
    chains = wiring.chains
    assert found == [(chain.kind.name, chain.kind.algorithm) for chain in chains]
    assert all(chain.up is block.up and chain.down is block.down for chain in chains)
    assert [block.up, block.gate] in wiring.readers


def test_a_layer_whose_values_go_to_two_is_in_no_chain() -> None:
    """What the second reads must not vanish."""
    block = Block(nn.GELU(), spied=True)
    assert watch(block, lambda: block(torch.randn(3, 8))).chains == []


def test_a_layer_in_two_places_is_replaced_in_both() -> None:
    """As layers shared by a model's blocks are."""
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    rewire(model, {shared: nn.Identity()})
    assert [type(module) for module in model] == [nn.Identity, nn.ReLU, nn.Identity]


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Return attention in float64."""
    scores = q.double() @ k.double().transpose(-1, -2) * scale
    return scores.softmax(-1) @ v.double()


@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [130, 130],
        [300, 299, 298, 270, 65, 64, 64, 63, 9, 8, 8, 8, 1, 1],
        [3] * 11,
        [5, 200, 5, 7, 17, 17],
    ],
)
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_attention_in_bfloat16_is_attention(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], chunk: int
) -> None:
    """Within what bfloat16 can tell apart, in any order of lengths and however it is cut."""
    monkeypatch.setattr("omai_ray.engines.embedding.half_attention._CHUNK_SCORES", chunk)
    packing = Packing(np.array(lengths), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 16, generator=generator).bfloat16().transpose(1, 2)
    attended = attend_half(q, k, v, packing, 0.25)
    assert attended is not None
    for start, end in zip(packing.starts, packing.ends, strict=True):
        own = slice(start, end)
        expected = reference(q[:, own], k[:, own], v[:, own], 0.25).transpose(0, 1)
        np.testing.assert_allclose(expected, attended[start:end].float(), atol=0.03)


@pytest.mark.parametrize("size", [40.0, -40.0, float("nan")])
def test_attention_that_bfloat16_cannot_hold_is_left_to_torch(size: float) -> None:
    """Exponentials that overflow, or all vanish, are noticed."""
    q = torch.full((1, 4, 16), size)
    k = torch.full((1, 4, 16), 1.0)
    assert attend_half(q, k, k, Packing(np.array([4]), torch.device("cpu")), 1.0) is None


def test_blocks_have_few_sizes() -> None:
    """A kernel is made, and kept in memory, for each size: whatever the texts, a few hundred."""
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(2000):
        lengths = np.sort(rng.integers(1, rng.integers(2, 513), rng.integers(1, 40)))
        for block in Packing(lengths, torch.device("cpu")).blocks:
            sizes.add((block.count, block.length))
            assert block.length <= max(8, block.groups[-1][2] + 7)
    assert len(sizes) < 400


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_large_scores_give_the_vectors_of_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model has scores of 80: some groups go one way, some the other."""
    texts = ["How do I reset my password?", "word " * 300, "SELECT 1;", "a b c " * 40]
    source = "builtin:all-minilm-l6-v2"
    expected = embed(EmbeddingEngine(spec(source, dtype="float32")), texts)
    took = []

    def note(*arguments: Any) -> torch.Tensor | None:
        attended = attend_half(*arguments)
        took.append(attended is not None)
        return attended

    monkeypatch.setattr("omai_ray.engines.embedding.attention.attend_half", note)
    vectors = embed(EmbeddingEngine(spec(source, dtype="bfloat16")), texts)
    assert (expected * vectors).sum(1).min() >= 0.9995
    assert took.count(True) > 10


@needs_int8
@pytest.mark.parametrize(
    ("config", "options", "chains"),
    [
        (BertConfig, {}, 2),
        (RobertaConfig, {"max_position_embeddings": 66}, 2),
        (DistilBertConfig, DISTILBERT, 2),
        (AlbertConfig, {"embedding_size": 16, "hidden_act": "gelu_new"}, 1),
        (LlamaConfig, {"num_key_value_heads": 2}, 0),
    ],
)
def test_int8_is_near_float32(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    config: type[PreTrainedConfig],
    options: dict[str, Any],
    chains: int,
) -> None:
    """Layers alone and in chains; the cosine is measured and said."""
    save_embedding_checkpoint(tmp_path, config=config, **options)
    expected = embed(EmbeddingEngine(spec(tmp_path, dtype="float32")))
    with caplog.at_level(logging.INFO):
        engine = EmbeddingEngine(spec(tmp_path, dtype="int8"))
    found = kinds(engine)
    assert nn.Linear not in found
    assert Int8Linear in found
    assert found.count(Int8Chain) == chains
    cosines = (expected * embed(engine)).sum(1)
    assert 0.98 <= cosines.min()
    assert cosines.max() < 0.9999999
    assert engine.int8_cosine.startswith("mean 0.9")
    assert f"in int8: cosine to float32 {engine.int8_cosine}" in caplog.text
    assert engine.provenance["dtype"] == "int8"


@needs_int8
def test_int8_of_the_built_in_model_keeps_its_vectors() -> None:
    """On texts that set no scale, nearer than calibrated OpenVINO's 0.9974 on average."""
    source = "builtin:all-minilm-l6-v2"
    texts = [line.strip() for line in Path(__file__).read_text().splitlines() if len(line) > 60]
    exact = embed(EmbeddingEngine(spec(source, dtype="float32")), texts)
    vectors = embed(EmbeddingEngine(spec(source, dtype="int8")), texts)
    cosines = (exact * vectors).sum(1)
    assert len(texts) > 20
    assert cosines.mean() >= 0.9975
    assert cosines.min() >= 0.99


@needs_int8
def test_int8_vectors_do_not_depend_on_batch_mates(tmp_path: Path) -> None:
    """The scales are the model's, not the batch's."""
    engine = EmbeddingEngine(spec(save_embedding_checkpoint(tmp_path), dtype="int8"))
    alone = np.concatenate([embed(engine, [text]) for text in TEXTS])
    np.testing.assert_allclose(alone, embed(engine), atol=5e-3)


@needs_int8
def test_int8_that_is_far_from_float32_ends_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the figure and what to do."""
    save_embedding_checkpoint(tmp_path)
    monkeypatch.setattr(engine_module, "_LEAST_COSINE", 1.5)
    with pytest.raises(
        ConfigError, match=r"model 'm': in int8 .* mean cosine of [01]\.\d+ .*another dtype"
    ):
        EmbeddingEngine(spec(tmp_path, dtype="int8"))


@needs_int8
def test_an_architecture_that_int8_does_not_fit_ends_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, not with a traceback from inside the model."""
    shape: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    save_embedding_checkpoint(tmp_path, config=T5Config, decoder_start_token_id=0, **shape)
    with pytest.raises(ConfigError, match="model 'm': dtype int8 does not work for this arch"):
        EmbeddingEngine(spec(tmp_path, dtype="int8"))


def test_int8_needs_its_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere its sums overflow, silently."""
    save_embedding_checkpoint(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(ConfigError, match="int8 needs a CPU with VNNI"):
        EmbeddingEngine(spec(tmp_path, dtype="int8"))


def test_int8_is_for_embedding_models() -> None:
    """The entry of a chat model is refused."""
    with pytest.raises(ValidationError, match="int8 is for embedding models only"):
        ModelSpec(name="m", task="chat", source="x", dtype="int8")


def test_the_calibration_texts_are_many_and_split_evenly() -> None:
    """Half set the scales, half measure: each has every kind."""
    texts = engine_module._CALIBRATION.read_text(encoding="utf-8").splitlines()
    assert len(texts) == len(set(texts)) == 96
    halves = [sum(map(len, half)) for half in (texts[::2], texts[1::2])]
    assert min(halves) > 0.9 * max(halves)
    assert all(text == text.strip() and json.dumps(text) for text in texts)


def test_lanes_run_side_by_side_and_keep_torchs_threads() -> None:
    """Two items meet, each on one thread; a single item has the caller's threads."""
    before = torch.get_num_threads()
    try:
        lanes = Lanes(2)
        meeting = threading.Barrier(2, timeout=30)
        seen: list[int] = []

        def work(item: int) -> None:
            meeting.wait()
            seen.append(torch.get_num_threads())

        lanes.run(work, [1, 2])
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
        caller: list[threading.Thread] = []
        lanes.run(lambda item: caller.append(threading.current_thread()), [1])
        assert caller == [threading.current_thread()]
    finally:
        torch.set_num_threads(before)


def test_a_failure_in_a_lane_is_raised_after_all_have_ended() -> None:
    """So that nothing of a failed step runs beside the next."""
    before = torch.get_num_threads()
    try:
        ended: list[int] = []

        def work(item: int) -> None:
            if item == 0:
                raise RuntimeError("poison")
            ended.append(item)

        with pytest.raises(RuntimeError, match="poison"):
            Lanes(2).run(work, range(20))
        assert sorted(ended) == list(range(1, 20))
    finally:
        torch.set_num_threads(before)


def test_lanes_change_no_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small step is whole, a middling one shared out, a large one cut by budget."""
    save_embedding_checkpoint(tmp_path)
    texts = ["fox dog the " * (1 + n % 13) for n in range(60)]
    expected = embed(EmbeddingEngine(spec(tmp_path, dtype="float32")), texts)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        engine = EmbeddingEngine(spec(tmp_path, dtype="float32"))
        assert engine._lanes.count == 2
        for lane_tokens, least in ((10**6, 10**6), (10**6, 1), (100, 1)):
            monkeypatch.setattr(engine_module, "LANE_TOKENS", lane_tokens)
            monkeypatch.setattr(engine_module, "_LEAST_SHARED_TOKENS", least)
            np.testing.assert_allclose(expected, embed(engine, texts), atol=1e-5)
    finally:
        torch.set_num_threads(before)
