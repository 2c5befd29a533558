from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.embedding.engine import EmbeddingEngine
from omai_ray.engines.embedding.pooling import POOLS, read_head
from omai_ray.errors import CheckpointError, ConfigError, ContextTooLong, InvalidRequest
from tests.checkpoints import save_embedding_checkpoint

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


def spec(source: Path | str, **fields: Any) -> ModelSpec:
    """Return the catalog entry of an embedding model."""
    return ModelSpec(name="m", task="embedding", source=str(source), **fields)


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


@pytest.mark.parametrize("pooling", POOLS)
@pytest.mark.parametrize("normalize", [True, False])
def test_each_pooling_equals_sentence_transformers(
    tmp_path: Path, pooling: str, normalize: bool
) -> None:
    """With padding in the batch, normalised or not."""
    save_embedding_checkpoint(tmp_path, pooling=pooling)
    if not normalize:
        modules = json.loads((tmp_path / "modules.json").read_text(encoding="utf-8"))
        (tmp_path / "modules.json").write_text(json.dumps(modules[:2]), encoding="utf-8")
    texts = ["Hello", "the quick brown fox jumps over", "dog dog"]
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    np.testing.assert_allclose(expected, embed(EmbeddingEngine(spec(tmp_path)), texts), atol=1e-5)


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
    monkeypatch.setattr("omai_ray.engines.embedding.engine.TOKEN_BUDGET", budget)
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
    dense = {"idx": 3, "name": "3", "path": "3", "type": "sentence_transformers.models.Dense"}
    rewrite(tmp_path / "modules.json", lambda modules: [*modules, dense])
    with pytest.raises(CheckpointError, match=r"models\.Dense' is not supported"):
        read_head(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {"pooling_mode": "weightedmean"},
        lambda _: {},
        lambda _: {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
)
def test_a_pooling_that_is_not_known_is_refused(tmp_path: Path, change: Any) -> None:
    """Another kind, none at all, or two at once."""
    save_embedding_checkpoint(tmp_path)
    rewrite(tmp_path / "1_Pooling/config.json", change)
    with pytest.raises(CheckpointError, match="is not supported"):
        read_head(tmp_path)


def test_a_prompt_left_out_of_the_pooling_is_refused(tmp_path: Path) -> None:
    """Pooling it all the same would give other vectors; without a prompt nothing is left out."""
    save_embedding_checkpoint(tmp_path)
    rewrite(tmp_path / "1_Pooling/config.json", lambda c: {**c, "include_prompt": False})
    assert read_head(tmp_path).pooling == "mean"
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "query: "}, "default_prompt_name": "query"})
    )
    with pytest.raises(CheckpointError, match="leaving the prompt out"):
        read_head(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[5]", '[{"idx": 0}]', "5"])
def test_modules_that_are_no_list_of_modules_are_refused(tmp_path: Path, text: str) -> None:
    """The error names the file."""
    save_embedding_checkpoint(tmp_path)
    (tmp_path / "modules.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_head(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """They can run code; the error says what was found."""
    save_embedding_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which can run code"):
        EmbeddingEngine(spec(tmp_path))


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
