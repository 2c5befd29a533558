from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from omai_ray.catalog import Catalog, ModelSpec, Replicas, availability, default_models, locate
from omai_ray.errors import ConfigError, ModelNotFound


def spec(name: str = "m", **fields: Any) -> ModelSpec:
    """Return a chat model's entry."""
    return ModelSpec(**{"name": name, "task": "chat", "source": "builtin:x", **fields})


def test_a_model_is_found_by_its_name_and_by_its_alias() -> None:
    """Both lead to the one entry."""
    catalog = Catalog((spec("a"), spec("b")), {"other": "b"})
    assert catalog.resolve("a").name == "a"
    assert catalog.resolve("other", "chat").name == "b"


@pytest.mark.parametrize(("name", "words"), [("c", "'c' does not exist"), ("a", "chat, not emb")])
def test_a_model_that_cannot_answer_is_not_found(name: str, words: str) -> None:
    """Unknown, or of another task."""
    with pytest.raises(ModelNotFound, match=words) as caught:
        Catalog((spec("a"),), {}).resolve(name, "embedding")
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("models", "aliases", "words"),
    [
        ((spec("a"), spec("a")), {}, "name given twice: a"),
        ((spec("a"),), {"x": "b"}, r"'x' points at 'b', which is not .* \(served: a\)"),
        ((spec("a"),), {"x": "y", "y": "a"}, "'x' points at 'y'"),
        ((spec("a"), spec("b")), {"a": "b"}, "'a' is already the name of a model"),
    ],
)
def test_names_that_clash_or_lead_nowhere_are_refused(
    models: tuple[ModelSpec, ...], aliases: dict[str, str], words: str
) -> None:
    """At start, by name."""
    with pytest.raises(ConfigError, match=words):
        Catalog(models, aliases)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "-a"},
        {"name": "a\n"},
        {"name": "a" * 201},
        {"task": "image"},
        {"source": ""},
        {"dtype": "int4"},
        {"context": 7},
        {"max_running_requests": 0},
        {"max_queued_requests": 0},
        {"typical_output_tokens": 0},
        {"num_cpus": -1},
        {"num_gpu": 1},
        {"replicas": {"min": 2}},
        {"replicas": {"max": 0}},
        {"replicas": {"initial": 2}},
        {"replicas": {"target_ongoing_requests": 0}},
    ],
)
def test_an_entry_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    """Bad names, unknown keys, impossible numbers."""
    with pytest.raises(ValidationError):
        spec(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pooling": "mean", "normalize": False}, "pooling, normalize: not for rerank models"),
        ({"prompt": "query"}, "prompt: not for rerank"),
        ({"dimensions": True}, "dimensions: not for rerank"),
        ({"dtype": "int8"}, "int8 is for embedding models only"),
        ({"engine": "vllm"}, "engine vllm is for chat models only"),
        ({"adapters": {"a": "x"}}, "adapters is for chat models"),
    ],
)
def test_what_makes_no_sense_for_a_reranker_is_refused_by_name(
    fields: dict[str, Any], words: str
) -> None:
    """It gives scores, not vectors."""
    with pytest.raises(ValidationError, match=words):
        spec(task="rerank", **fields)


@pytest.mark.parametrize(
    "fields", [{"pooling": "mean"}, {"normalize": False}, {"dimensions": True}, {"truncate": True}]
)
def test_what_is_of_vectors_is_refused_for_a_chat_model(fields: dict[str, Any]) -> None:
    """It would be ignored."""
    with pytest.raises(ValidationError, match="not for chat models"):
        spec(task="chat", **fields)


def test_a_reranker_is_an_entry_like_an_embedding_models() -> None:
    """With what both have; and it answers its own task only."""
    fields: dict[str, Any] = {"truncate": True, "dtype": "bfloat16", "context": 64}
    catalog = Catalog((spec("r", task="rerank", max_queued_requests=8, **fields),), {})
    assert catalog.resolve("r", "rerank").truncate
    with pytest.raises(ModelNotFound, match="does rerank, not embedding"):
        catalog.resolve("r", "embedding")


def test_replicas_may_start_between_their_bounds() -> None:
    """min, initial, max."""
    assert Replicas(min=0, initial=1, max=3).initial == 1


def test_a_source_is_a_builtin_or_a_directory(tmp_path: Path) -> None:
    """Neither needs a network."""
    assert locate(spec(source=str(tmp_path))) == tmp_path
    assert (locate(default_models()[1]) / "config.json").is_file()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("builtin:nothing", "no built-in model 'nothing'"),
        ("/nowhere/at/all", "no directory /nowhere/at/all"),
        ("./nowhere", "no directory"),
        ("~/nowhere-at-all", "no directory"),
        ("one", "no directory one"),
        ("a/b/c", "no directory a/b/c"),
    ],
)
def test_a_source_that_is_nowhere_is_refused_without_asking_the_network(
    source: str, words: str
) -> None:
    """The error names what was looked for."""
    with pytest.raises(ConfigError, match=words):
        locate(spec(source=source))
    assert availability(spec(source=source)).startswith("no: ")


def test_asking_whether_a_hub_model_is_here_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the local cache is looked at; no file but a checkpoint's is ever asked for."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(source: str, **options: Any) -> str:
        asked.append({"source": source, **options})
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    entry = spec(source="someone/model", revision="v1")
    assert availability(entry) == "no: not fetched from the hub yet"
    with pytest.raises(ConfigError, match="neither a directory nor a model"):
        locate(entry)
    assert [call["local_files_only"] for call in asked] == [True, False]
    for call in asked:
        assert (call["source"], call["revision"]) == ("someone/model", "v1")
        assert "*.safetensors" in call["allow_patterns"]
        assert not {"*", "*.bin", "*.py"} & set(call["allow_patterns"])
