from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AlbertConfig,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.embedding.engine import EmbeddingEngine
from omai_ray.engines.embedding.head import POOLS, read_head
from omai_ray.errors import CheckpointError, ConfigError, ContextTooLong, InvalidRequest
from tests.checkpoints import save_embedding_checkpoint, write_modules

pytestmark = pytest.mark.filterwarnings("default")  # what sentence-transformers warns of is its own

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "Ich möchte mein Passwort zurücksetzen, wie geht das?",
    "日本語の文章です。",
    "SELECT name, price FROM products WHERE price > 100 ORDER BY price DESC;",
    "  leading and trailing spaces\n\nand lines\t ",
    "🙂 emoji, e\u0301 combining, \u200b zero width",
    "a",
    "A long one. " * 30,
]


Module = tuple[str, dict[str, Any], dict[str, torch.Tensor]]
MIXED = ["Hello", "the quick brown fox jumps over", "dog dog", "", "fox " * 30, "Hello dog"]
POOLING: Module = ("Pooling", {"embedding_dimension": 32, "pooling_mode": "mean"}, {})
DENSE = {"linear.weight": torch.ones(8, 32)}


def spec(source: Path | str, **fields: Any) -> ModelSpec:
    """Return the catalog entry of an embedding model that computes in float32."""
    options = {"dtype": "float32", **fields}
    return ModelSpec(name="m", task="embedding", source=str(source), **options)


@pytest.fixture(scope="module")
def minilm() -> EmbeddingEngine:
    """Return the built-in model."""
    return EmbeddingEngine(spec("builtin:all-minilm-l6-v2"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingEngine:
    """Return a small random model."""
    return EmbeddingEngine(spec(save_embedding_checkpoint(tmp_path_factory.mktemp("small"))))


def embed(engine: EmbeddingEngine, texts: list[str]) -> np.ndarray[Any, Any]:
    """Return the vectors of texts, shortened as the bulk pipeline may."""
    return engine.embed_ids([engine.tokenizer.shorten(ids) for ids in engine.tokenize(texts)])


def test_vectors_equal_sentence_transformers(minilm: EmbeddingEngine) -> None:
    """MiniLM, to 1e-5, for realistic texts; unit length, float32."""
    model = SentenceTransformer(str(locate(spec("builtin:all-minilm-l6-v2"))), device="cpu")
    vectors = embed(minilm, TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), minilm.dimension) == (len(TEXTS), 384)
    np.testing.assert_allclose(model.encode(TEXTS), vectors, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def assert_equals_sentence_transformers(
    directory: Path, texts: list[str] = MIXED, **fields: Any
) -> EmbeddingEngine:
    """Check that vectors of texts of mixed lengths are those of the reference library."""
    engine = EmbeddingEngine(spec(directory, **fields))
    options = {"prompt_name": fields["prompt"]} if "prompt" in fields else {}
    model = SentenceTransformer(str(directory), device="cpu")
    expected = model.encode(texts, batch_size=len(texts), **options)
    vectors = embed(engine, texts)
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(expected, vectors, atol=2e-5 * np.abs(expected).max())
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(vectors, axis=1)
    assert ((expected * vectors).sum(1) / lengths).min() >= 0.99999
    assert np.ptp(vectors, axis=0).max() > 1e-2  # the texts' vectors differ at all
    return engine


@pytest.mark.parametrize(
    "pooling", [*POOLS, ["mean", "max"], ["lasttoken", "cls", "mean"]], ids=str
)
@pytest.mark.parametrize("normalize", [True, False])
def test_each_pooling_equals_sentence_transformers(
    tmp_path: Path, pooling: str | list[str], normalize: bool
) -> None:
    """One mode or several side by side, normalised or not."""
    save_embedding_checkpoint(tmp_path, pooling=pooling)
    if not normalize:
        rewrite(tmp_path / "modules.json", lambda modules: modules[:2])
    assert assert_equals_sentence_transformers(tmp_path)._encoder.packs


ARCHITECTURES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"max_position_embeddings": 66}),
    "distilbert": (
        DistilBertConfig,
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    ),
    "albert": (AlbertConfig, {"embedding_size": 16}),
    "electra": (ElectraConfig, {"embedding_size": 16}),
    "modernbert": (
        ModernBertConfig,
        {
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
    ),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
    "llama": (LlamaConfig, {"num_key_value_heads": 2}),
    "mistral-window": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": 6}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_is_packed_and_equals_sentence_transformers(
    tmp_path: Path, name: str
) -> None:
    """Absolute, offset and rotary positions, sliding windows, causal decoders, shared heads."""
    config, options = ARCHITECTURES[name]
    pooling = "lasttoken" if "num_key_value_heads" in options else "mean"
    save_embedding_checkpoint(tmp_path, config=config, pooling=pooling, **options)
    assert assert_equals_sentence_transformers(tmp_path)._encoder.packs


def test_left_padding_changes_nothing(tmp_path: Path) -> None:
    """As Qwen3's embedders state it: here nothing is padded."""
    config, options = ARCHITECTURES["qwen3"]
    save_embedding_checkpoint(tmp_path, config=config, pooling="lasttoken", **options)
    rewrite(tmp_path / "tokenizer_config.json", lambda c: {**c, "padding_side": "left"})
    assert_equals_sentence_transformers(tmp_path)


def test_what_cannot_be_packed_runs_on_padded_batches_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MPNet computes its position bias itself; its vectors are right all the same."""
    save_embedding_checkpoint(
        tmp_path, config=MPNetConfig, max_position_embeddings=66, pad_token_id=1
    )
    with caplog.at_level(logging.WARNING):
        engine = assert_equals_sentence_transformers(tmp_path)
    assert not engine._encoder.packs
    said = [record.getMessage() for record in caplog.records if "padded batches" in record.message]
    assert len(said) == 1


def test_an_encoder_of_an_encoder_decoder_is_used_alone(tmp_path: Path) -> None:
    """As sentence-t5 and GTR are."""
    save_embedding_checkpoint(
        tmp_path,
        config=T5Config,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    assert_equals_sentence_transformers(tmp_path)


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "ReLU", "GELU"])
@pytest.mark.parametrize("residual", [False, True])
def test_modules_after_pooling_equal_sentence_transformers(
    tmp_path: Path, activation: str, residual: bool
) -> None:
    """Dense with each activation and a residual, LayerNorm, Normalize, Dropout."""
    save_embedding_checkpoint(tmp_path)
    shutil.rmtree(tmp_path / "2_Normalize", ignore_errors=True)
    torch.manual_seed(0)
    dense = {"linear.weight": torch.randn(24, 32), "linear.bias": torch.randn(24)}
    if residual:
        dense["residual.weight"] = torch.randn(24, 32)
    settings = {
        "in_features": 32,
        "out_features": 24,
        "bias": True,
        "activation_function": f"torch.nn.modules.activation.{activation}",
        "use_residual": residual,
    }
    if activation == "Identity":
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
    norm = {"norm.weight": torch.randn(24), "norm.bias": torch.randn(24)}
    write_modules(
        tmp_path,
        POOLING,
        ("Dropout", {"dropout": 0.1}, {}),
        ("Dense", settings, dense),
        ("LayerNorm", {"dimension": 24}, norm),
        ("Normalize", {}, {}),
    )
    assert assert_equals_sentence_transformers(tmp_path).dimension == 24


@pytest.mark.parametrize("pooling", POOLS)
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("prompt", [None, "query"])
def test_prompts_equal_sentence_transformers(
    tmp_path: Path, pooling: str, include_prompt: bool, prompt: str | None
) -> None:
    """The default one or the one that the entry names, pooled or left out of the pooling."""
    save_embedding_checkpoint(tmp_path, pooling=pooling)
    rewrite(tmp_path / "1_Pooling/config.json", lambda c: {**c, "include_prompt": include_prompt})
    prompts = {"query": "the fox jumps: ", "passage": "dog dog "}
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts, "default_prompt_name": "passage"})
    )
    chosen = {"prompt": prompt} if prompt else {}
    texts = [text for text in MIXED if text]  # of a lone prompt left out, nothing is there to pool
    engine = assert_equals_sentence_transformers(tmp_path, texts, **chosen)
    # Token ids that do not begin with the prompt are pooled whole.
    ids = [[2, 9, 8, 7, 3], [2, 3]]
    rewrite(tmp_path / "1_Pooling/config.json", lambda c: {**c, "include_prompt": True})
    plain = EmbeddingEngine(spec(tmp_path))
    np.testing.assert_allclose(plain.embed_ids(ids), engine.embed_ids(ids), atol=1e-5)


def test_a_bare_encoder_needs_a_stated_pooling(tmp_path: Path) -> None:
    """The entry says what the checkpoint does not; both at once is refused."""
    layout = save_embedding_checkpoint(tmp_path / "layout", pooling="cls")
    expected = embed(EmbeddingEngine(spec(layout)), MIXED)
    bare = shutil.copytree(layout, tmp_path / "bare")
    (bare / "modules.json").unlink()
    vectors = embed(EmbeddingEngine(spec(bare, pooling="cls")), MIXED)
    np.testing.assert_allclose(expected, vectors, atol=1e-5)
    longer_engine = EmbeddingEngine(spec(bare, pooling="cls", normalize=False))
    longer = embed(longer_engine, MIXED)
    assert EmbeddingEngine(spec(layout)).unit_length
    assert not longer_engine.unit_length
    assert np.linalg.norm(longer, axis=1).min() > 1.01
    with pytest.raises(CheckpointError, match="its pooling is unknown; give `pooling`"):
        EmbeddingEngine(spec(bare))
    with pytest.raises(ConfigError, match=r"pooling is given, and .* states its own"):
        EmbeddingEngine(spec(layout, pooling="cls"))


def test_a_prompt_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    """By name, with those it has."""
    save_embedding_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=r"prompt 'query' is not among .*\(none\)"):
        EmbeddingEngine(spec(tmp_path, prompt="query"))


def test_an_encoder_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    """The older layout, 0_Transformer."""
    save_embedding_checkpoint(tmp_path)
    folder = tmp_path / "0_Transformer"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).rename(folder / name)
    (tmp_path / "sentence_bert_config.json").rename(folder / "sentence_bert_config.json")
    rewrite(tmp_path / "modules.json", lambda m: [{**m[0], "path": "0_Transformer"}, *m[1:]])
    assert assert_equals_sentence_transformers(tmp_path).context == 48


def test_order_is_kept_and_batch_mates_do_not_matter(small: EmbeddingEngine) -> None:
    """Inputs of shuffled lengths, beyond one token budget, equal each alone."""
    texts = [" ".join(["fox", "dog", "the"][: 1 + n % 3] * (1 + n % 14)) for n in range(300)]
    random.Random(7).shuffle(texts)
    together = embed(small, texts)
    alone = np.concatenate([embed(small, [text]) for text in texts[:60]])
    np.testing.assert_allclose(alone, together[:60], atol=1e-5)
    order = list(range(300))
    random.Random(8).shuffle(order)
    np.testing.assert_allclose(
        together[order], embed(small, [texts[at] for at in order]), atol=1e-5
    )


@pytest.mark.parametrize("budget", [1, 50, 10**6])
def test_the_token_budget_changes_no_vector(
    small: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """One row a forward, or all of them."""
    texts = ["fox " * (1 + n) for n in range(20)]
    expected = embed(small, texts)
    monkeypatch.setattr(small, "step_tokens", budget)
    np.testing.assert_allclose(expected, embed(small, texts), atol=1e-5)


def test_nothing_gives_no_vectors(small: EmbeddingEngine) -> None:
    """No input is an empty array of the right width."""
    assert small.embed_ids([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ([[5], []], InvalidRequest, "input 1 has no token"),
        ([[5], [5] * 49], ContextTooLong, "input 1 has 49 tokens; the model accepts 48"),
        ([[5], [5, -1]], InvalidRequest, "input 1 has a token id outside"),
        ([[10**6]], InvalidRequest, "input 0 has a token id outside"),
    ],
)
def test_an_input_that_cannot_be_embedded_is_named(
    small: EmbeddingEngine, inputs: list[list[int]], error: type[Exception], words: str
) -> None:
    """Empty, over-long, or outside the vocabulary: nothing reaches the model."""
    with pytest.raises(error, match=words):
        small.embed_ids(inputs)


def test_the_fingerprint_is_of_all_that_decides_a_vector(tmp_path: Path) -> None:
    """The same files give the same one; another pooling, weight or limit another."""
    first = save_embedding_checkpoint(tmp_path / "a")
    same = shutil.copytree(first, tmp_path / "b")
    other = save_embedding_checkpoint(tmp_path / "c", seed=1)
    pooled = save_embedding_checkpoint(tmp_path / "d", pooling="cls")
    prints = [
        EmbeddingEngine(spec(first)).fingerprint,
        EmbeddingEngine(spec(other)).fingerprint,
        EmbeddingEngine(spec(pooled)).fingerprint,
        EmbeddingEngine(spec(first, context=20)).fingerprint,
    ]
    assert len(set(prints)) == 4
    assert prints[0] == EmbeddingEngine(spec(same)).fingerprint


@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(tmp_path: Path, name: str, dtype: str) -> None:
    """Packed all the same, and pooled in float32."""
    config, options = ARCHITECTURES[name]
    save_embedding_checkpoint(tmp_path, config=config, **options)
    engine = EmbeddingEngine(spec(tmp_path, dtype=dtype))
    expected, vectors = embed(EmbeddingEngine(spec(tmp_path)), MIXED), embed(engine, MIXED)
    assert engine._encoder.packs
    assert vectors.dtype == np.float32
    assert 0.99 <= (expected * vectors).sum(1).min() < 1.00001


@pytest.mark.parametrize("halved", [True, False])
def test_a_cpu_with_bfloat16_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halved: bool
) -> None:
    """Where the entry leaves the dtype open, and the CPU need not emulate it."""
    if halved and not torch.cpu.get_capabilities().get("avx512_bw"):
        pytest.skip("this CPU has no AVX-512, which packed bfloat16 needs")
    save_embedding_checkpoint(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": halved})
    engine = EmbeddingEngine(spec(tmp_path, dtype="auto"))
    assert engine.provenance["dtype"] == ("bfloat16" if halved else "float32")


def rewrite(path: Path, change: Any) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(value)), encoding="utf-8")


def test_a_checkpoint_without_modules_is_refused(tmp_path: Path) -> None:
    """Its pooling would be a guess."""
    save_embedding_checkpoint(tmp_path)
    (tmp_path / "modules.json").unlink()
    with pytest.raises(CheckpointError, match=r"no modules\.json.*sentence-transformers"):
        EmbeddingEngine(spec(tmp_path))


def test_an_unknown_module_is_refused_by_name(tmp_path: Path) -> None:
    """A module left out would change every vector."""
    save_embedding_checkpoint(tmp_path)
    write_modules(tmp_path, POOLING, ("CNN", {"kernel": 3}, {}))
    with pytest.raises(CheckpointError, match=r"module 'CNN' is not supported .*Dense"):
        read_head(tmp_path, 32)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([("Normalize", {}, {})], "has no Pooling"),
        ([("Normalize", {}, {}), POOLING], "must come once, before"),
        ([POOLING, POOLING], "must come once, before"),
        ([("Pooling", {"pooling_mode": "median"}, {})], "pooling 'median' is not supported"),
        ([("Pooling", {"pooling_mode": ["mean", "x"]}, {})], "pooling 'mean, x' is not supported"),
        ([("Pooling", {"embedding_dimension": 32}, {})], "pooling 'none' is not supported"),
        (
            [("Pooling", {"pooling_mode": "cls", "word_embedding_dimension": 99}, {})],
            "pools vectors of 99, the encoder gives 32",
        ),
        ([POOLING, ("Dense", {"bias": False}, {})], r"no model\.safetensors"),
        (
            [POOLING, ("Dense", {"bias": False}, {"linear.weight": torch.ones(8, 31)})],
            r"weight is \(8, 31\), must take vectors of 32",
        ),
        (
            [POOLING, ("Dense", {"activation_function": "os.system"}, DENSE)],
            "activation_function 'os.system' is not supported",
        ),
        (
            [POOLING, ("Dense", {"activation_function": "torch.nn.Linear"}, DENSE)],
            "activation_function 'torch.nn.Linear' is not supported",
        ),
        (
            [POOLING, ("Dense", {"module_input_name": "token_embeddings"}, DENSE)],
            "module_input_name 'token_embeddings' is not supported",
        ),
        ([POOLING, ("LayerNorm", {"dimension": 32}, DENSE)], "LayerNorm must have weights"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(
    tmp_path: Path, modules: list[Module], words: str
) -> None:
    """At load, naming what is wrong."""
    save_embedding_checkpoint(tmp_path)
    shutil.rmtree(tmp_path / "1_Pooling")
    write_modules(tmp_path, *modules)
    with pytest.raises(CheckpointError, match=words):
        EmbeddingEngine(spec(tmp_path))


@pytest.mark.parametrize("text", ["{", "{}", "[5]", '[{"idx": 0}]', "5"])
def test_modules_that_are_no_list_of_modules_are_refused(tmp_path: Path, text: str) -> None:
    """The error names the file."""
    save_embedding_checkpoint(tmp_path)
    (tmp_path / "modules.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_head(tmp_path, 32)


@pytest.mark.fault(24)
def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """They can run code; the error says what was found."""
    save_embedding_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which can run code"):
        EmbeddingEngine(spec(tmp_path))


@pytest.mark.fault(24)
def test_code_of_the_checkpoints_own_is_refused(tmp_path: Path) -> None:
    """auto_map is never followed."""
    save_embedding_checkpoint(tmp_path)
    rewrite(tmp_path / "config.json", lambda c: {**c, "auto_map": {"AutoModel": "evil.Model"}})
    with pytest.raises(CheckpointError, match="code of its own"):
        EmbeddingEngine(spec(tmp_path))


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """Nothing is fetched instead."""
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        EmbeddingEngine(spec(tmp_path))


def test_a_context_above_the_checkpoints_is_refused(tmp_path: Path) -> None:
    """At load, not at the first long input."""
    save_embedding_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="context 4096 is above"):
        EmbeddingEngine(spec(tmp_path, context=4096))
