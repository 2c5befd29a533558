"""Rerankers: pairs of texts to ids, and ids to scores, as sentence-transformers has them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import CrossEncoder
from transformers import (
    AlbertConfig,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from omai_ray.catalog import ModelSpec
from omai_ray.engines.embedding import cross_encoder
from omai_ray.engines.embedding.batcher import EmbeddingBatcher
from omai_ray.engines.embedding.engine import LANE_TOKENS
from omai_ray.engines.embedding.lanes import Lanes
from omai_ray.engines.embedding.rerank import RerankEngine
from omai_ray.errors import CheckpointError, ConfigError, ContextTooLong, InvalidRequest
from omai_ray.text.embedding_input import PairTokenizer
from tests.checkpoints import save_embedding_checkpoint, save_rerank_checkpoint, write_modules

pytestmark = pytest.mark.filterwarnings("default")  # what sentence-transformers warns of is its own

QUERY = "Hello, how are you?"
DOCUMENTS = ["I am fine", "the quick brown fox jumps over", "dog", "", "fox " * 25, "Hello dog"]
IDENTITY = "torch.nn.modules.linear.Identity"
OFFSET: dict[str, Any] = {"max_position_embeddings": 66, "type_vocab_size": 1, "segments": False}
MODERN = {
    "local_attention": 8,
    "global_attn_every_n_layers": 2,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
PACKED: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "bert-without-segments": (BertConfig, {"segments": False}),
    "xlm-roberta": (XLMRobertaConfig, OFFSET),
    "roberta": (RobertaConfig, OFFSET),
    "electra": (ElectraConfig, {"embedding_size": 16}),
    "distilbert": (DistilBertConfig, {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "modernbert-cls": (ModernBertConfig, MODERN),
    "modernbert-mean": (ModernBertConfig, {**MODERN, "classifier_pooling": "mean"}),
    "llama": (LlamaConfig, {"num_key_value_heads": 2}),
}


def spec(source: Path, **fields: Any) -> ModelSpec:
    """Return the catalog entry of a reranker that computes in float32."""
    return ModelSpec(**{"name": "m", "task": "rerank", "source": str(source), **fields})


def exact(source: Path, **fields: Any) -> RerankEngine:
    """Return the engine of a checkpoint, in float32."""
    return RerankEngine(spec(source, dtype="float32", **fields))


def score(
    engine: RerankEngine, documents: list[str] = DOCUMENTS, query: str = QUERY
) -> np.ndarray[Any, Any]:
    """Return the scores of documents for a query."""
    return engine.embed_ids(engine.tokenizer.encode_pairs(query, documents))[:, 0]


def reference(
    source: Path, documents: list[str] = DOCUMENTS, query: str = QUERY
) -> np.ndarray[Any, Any]:
    """Return the scores that the reference library gives by default."""
    pairs = [(query, document) for document in documents]
    scores: np.ndarray[Any, Any] = CrossEncoder(str(source), device="cpu").predict(pairs)
    return scores


def rewrite(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, which need not be there."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random BERT; tests leave it as it is."""
    return save_rerank_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def engine(bert: Path) -> RerankEngine:
    """Return it loaded."""
    return exact(bert)


@pytest.mark.parametrize("name", PACKED)
def test_scores_equal_sentence_transformers(tmp_path: Path, name: str) -> None:
    """To 1e-5, without padding; for each way of joining texts, and each kind of head."""
    config, options = PACKED[name]
    save_rerank_checkpoint(tmp_path, config=config, **options)
    engine = exact(tmp_path)
    scores, expected = score(engine), reference(tmp_path)
    np.testing.assert_allclose(expected, scores, rtol=0, atol=1e-5)
    assert np.ptp(np.log(scores / (1 - scores))) > 1e-2  # the documents differ at all
    assert engine._packs
    rows = engine.embed_ids(engine.tokenizer.encode_pairs(QUERY, DOCUMENTS))
    assert rows.shape == (len(DOCUMENTS), 1)
    assert rows.dtype == np.float32


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (
            DebertaV2Config,
            {
                "type_vocab_size": 0,
                "relative_attention": True,
                "position_buckets": 16,
                "pos_att_type": ["p2c", "c2p"],
                "pooler_hidden_size": 32,
            },
            "a deberta-v2 runs on padded batches",
        ),
        (AlbertConfig, {"embedding_size": 16}, "a albert runs whole on padded batches"),
    ],
)
def test_what_cannot_be_packed_or_taken_apart_scores_the_same(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    config: type[Any],
    options: dict[str, Any],
    words: str,
) -> None:
    """An attention, or a pooler, of its own costs speed, and a warning says so."""
    save_rerank_checkpoint(tmp_path, config=config, **options)
    with caplog.at_level(logging.WARNING):
        engine = exact(tmp_path)
    assert len([record for record in caplog.records if words in record.getMessage()]) == 1
    assert not engine._packs
    np.testing.assert_allclose(reference(tmp_path), score(engine), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "modernbert-mean"])
def test_bfloat16_is_near(tmp_path: Path, name: str) -> None:
    """To the precision of the dtype."""
    config, options = PACKED[name]
    save_rerank_checkpoint(tmp_path, config=config, **options)
    engine = RerankEngine(spec(tmp_path, dtype="bfloat16"))
    assert engine._packs
    np.testing.assert_allclose(reference(tmp_path), score(engine), rtol=0, atol=2e-2)


def test_segments_decide_scores(engine: RerankEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test of equality means something: all of segment 0 is another score."""
    expected = score(engine)
    monkeypatch.setattr(engine.tokenizer, "segments", lambda ids: [0] * len(ids))
    assert np.abs(expected - score(engine)).max() > 1e-3


def test_long_and_short_pairs_of_one_batch_are_scored_each_for_itself(
    engine: RerankEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, and however many of them the head is given at once."""
    documents = ["fox " * count for count in (1, 30, 2, 29, 3, 28, 4)]
    expected = [score(engine, [document])[0] for document in documents]
    np.testing.assert_allclose(expected, score(engine, documents), rtol=0, atol=1e-6)
    monkeypatch.setattr(cross_encoder, "PADDED_TOKENS", 50)
    np.testing.assert_allclose(expected, score(engine, documents), rtol=0, atol=1e-6)


def test_padding_counts_where_lanes_share_a_step_out(
    engine: RerankEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long input beside many short ones would make a batch of padding."""
    lengths = np.array([500, *[3] * 400])
    monkeypatch.setattr(engine, "_lanes", Lanes(2))
    assert len(engine._batches(lengths)) == 2
    monkeypatch.setattr(engine, "_packs", False)
    batches = engine._batches(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert max(len(batch) * lengths[batch].max() for batch in batches) <= LANE_TOKENS


async def test_requests_are_batched_as_those_of_an_embedding_model(engine: RerankEngine) -> None:
    """The same batcher has both kinds of engine."""
    batcher = EmbeddingBatcher(engine, max_queued=4)
    inputs = engine.tokenizer.encode_pairs(QUERY, DOCUMENTS)
    scores = await batcher.embed(inputs, "account")
    np.testing.assert_allclose(engine.embed_ids(inputs), scores, rtol=0, atol=1e-6)
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        await batcher.embed([[10**6]])


@pytest.mark.parametrize(
    "settings",
    [
        {"sentence_transformers": {"activation_fn": IDENTITY}},
        {"sentence_transformers": {"version": "4.0.0"}},
        {"sbert_ce_default_activation_function": IDENTITY},
    ],
)
def test_the_checkpoint_states_the_activation(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Of logits, where versions of the reference library put it; else it is a sigmoid."""
    save_rerank_checkpoint(tmp_path)
    rewrite(tmp_path / "config.json", **settings)
    np.testing.assert_allclose(reference(tmp_path), score(exact(tmp_path)), rtol=0, atol=1e-5)


def test_a_checkpoint_saved_by_sentence_transformers_scores_the_same(
    bert: Path, tmp_path: Path
) -> None:
    """Its layout, with an activation, and the prompt that it puts before queries."""
    prompts = {"ask": "quick "}
    model = CrossEncoder(str(bert), device="cpu", activation_fn=torch.nn.Tanh(), prompts=prompts)
    model.default_prompt_name = "ask"
    model.save_pretrained(str(tmp_path))
    engine = exact(tmp_path)
    assert engine.tokenizer.encode_pairs("fox", ["dog"]) == PairTokenizer(bert).encode_pairs(
        "quick fox", ["dog"]
    )
    np.testing.assert_allclose(reference(tmp_path), score(engine), rtol=0, atol=1e-5)


@pytest.mark.parametrize("segments", [True, False])
def test_pairs_are_encoded_as_transformers_does(tmp_path: Path, segments: bool) -> None:
    """Special tokens and segments included, with one separator or two."""
    config, options = (BertConfig, {}) if segments else (XLMRobertaConfig, OFFSET)
    save_rerank_checkpoint(tmp_path, config=config, **options)
    tokenizer, usual = PairTokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    expected = usual([QUERY] * len(DOCUMENTS), DOCUMENTS, return_token_type_ids=True)
    pairs = tokenizer.encode_pairs(QUERY, DOCUMENTS)
    assert expected["input_ids"] == pairs
    assert expected["token_type_ids"] == [tokenizer.segments(ids) for ids in pairs]
    assert tokenizer.encode_pairs(QUERY, []) == []


@pytest.mark.parametrize("segments", [True, False])
def test_a_pair_is_shortened_at_the_end_of_its_document(tmp_path: Path, segments: bool) -> None:
    """As truncation="only_second" does, to each context that leaves room for a token of it."""
    save_rerank_checkpoint(tmp_path, segments=segments)
    usual = AutoTokenizer.from_pretrained(tmp_path)
    (ids,) = PairTokenizer(tmp_path).encode_pairs("Hello", ["the quick brown fox jumps over"])
    room = 2 + len(usual.tokenize("Hello")) + (1 if segments else 2)
    for context in range(max(8, room + 1), len(ids) + 2):
        options = {"truncation": "only_second", "max_length": context}
        expected = usual("Hello", "the quick brown fox jumps over", **options)["input_ids"]
        assert expected == PairTokenizer(tmp_path, context).shorten_pair(ids)


def test_a_query_that_leaves_no_room_is_refused(bert: Path) -> None:
    """Cutting it would score another question."""
    tokenizer = PairTokenizer(bert, 16)
    (ids,) = tokenizer.encode_pairs("dog " * 40, ["fox"])
    with pytest.raises(ContextTooLong, match=r"leaves no room .* accepts 16") as caught:
        tokenizer.shorten_pair(ids)
    assert caught.value.param == "query"


def test_the_context_is_the_checkpoints_or_lower(bert: Path, engine: RerankEngine) -> None:
    """A longer pair is refused."""
    assert (64, 20) == (PairTokenizer(bert).context, PairTokenizer(bert, 20).context)
    with pytest.raises(ConfigError, match="context 65 is above"):
        PairTokenizer(bert, 65)
    with pytest.raises(ContextTooLong, match="accepts 64"):
        score(engine, ["fox " * 80])


def test_lower_casing_is_the_checkpoints(tmp_path: Path) -> None:
    """Of query and document."""
    save_rerank_checkpoint(tmp_path)
    rewrite(tmp_path / "sentence_bert_config.json", do_lower_case=True)
    tokenizer = PairTokenizer(tmp_path)
    assert tokenizer.encode_pairs("hello", ["the dog"]) == tokenizer.encode_pairs(
        "HELLO", ["The DOG"]
    )


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_of_several_labels_is_refused(tmp_path: Path, labels: int) -> None:
    """Which of them ranks would be a guess."""
    save_rerank_checkpoint(tmp_path, num_labels=labels)
    with pytest.raises(ConfigError, match=f"is a BertForSequenceClassification of {labels} labels"):
        exact(tmp_path)


def test_an_encoder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    """Transformers would make up its weights."""
    save_embedding_checkpoint(tmp_path)
    (tmp_path / "modules.json").unlink()
    rewrite(tmp_path / "config.json", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(CheckpointError, match=r"no cross-encoder: .* classifier\.bias"):
        exact(tmp_path)


@pytest.mark.parametrize("kind", ["LogitScore", "Pooling"])
def test_a_module_after_the_transformer_is_refused(tmp_path: Path, kind: str) -> None:
    """By name."""
    save_rerank_checkpoint(tmp_path)
    write_modules(tmp_path, (kind, {}, {}))
    with pytest.raises(CheckpointError, match=f"module '{kind}' is not supported in a reranker"):
        exact(tmp_path)


@pytest.mark.parametrize("given", ["os.system", "torch.nn.Linear"])
def test_an_activation_that_is_none_is_refused(tmp_path: Path, given: str) -> None:
    """Nothing but activations of torch.nn is ever called."""
    save_rerank_checkpoint(tmp_path)
    rewrite(tmp_path / "config.json", sentence_transformers={"activation_fn": given})
    with pytest.raises(CheckpointError, match=f"activation_fn '{given}' is not supported"):
        exact(tmp_path)


@pytest.mark.fault(24)
def test_pickled_weights_and_code_of_its_own_are_refused(tmp_path: Path) -> None:
    """As of every checkpoint."""
    save_rerank_checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="can run code"):
        exact(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(weights)
    rewrite(tmp_path / "config.json", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(CheckpointError, match="code of its own"):
        exact(tmp_path)


def test_segments_that_cannot_be_told_from_ids_are_refused(tmp_path: Path) -> None:
    """A tokenizer that marks where no separator stands."""
    save_rerank_checkpoint(tmp_path)
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["post_processor"]["pair"][0]["SpecialToken"]["type_id"] = 1
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(CheckpointError, match="segment ids are not 0 up to a separator"):
        exact(tmp_path)


def test_int8_is_refused(bert: Path) -> None:
    """At the catalog: nobody has measured what it does to a ranking."""
    with pytest.raises(ValidationError, match="int8 is for embedding models only"):
        spec(bert, dtype="int8")


def test_the_head_computes_in_float32(bert: Path) -> None:
    """Whatever the encoder does."""
    engine = RerankEngine(spec(bert, dtype="bfloat16"))
    assert engine._model._encoder is not None
    assert {p.dtype for p in engine._model._model.parameters()} == {torch.float32}
    assert engine._model._encoder._model.dtype == torch.bfloat16
