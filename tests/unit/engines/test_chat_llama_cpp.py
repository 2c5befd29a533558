"""What is the llama.cpp engine's own."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.protocol import GenerationRequest, Grammar, SamplingParams
from omai_ray.errors import CheckpointError, ConfigError
from omai_ray.text.tokenizer import TextTokenizer
from tests.chat import greedy
from tests.checkpoints import save_chat_checkpoint
from tests.programs import require_module

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random chat model as a GGUF file, beside what it was made of."""
    require_module("llama_cpp", extra="llama-cpp")
    from benchmarks.gguf_llama import write_gguf

    directory = save_chat_checkpoint(tmp_path_factory.mktemp("chat"))
    write_gguf(directory)
    return directory


def spec(directory: Path, **fields: Any) -> ModelSpec:
    """Return an entry of the catalog."""
    given = {"name": "m", "task": "chat", "source": str(directory), "dtype": "float32"}
    return ModelSpec(**{**given, "engine": "llama-cpp", **fields})


async def answers(
    engine: BatchingEngine, prompts: list[list[int]], new_tokens: int, **fields: Any
) -> list[list[int]]:
    """Return the tokens of each prompt's answer, all asked for together."""

    async def one(at: int, prompt: list[int]) -> list[int]:
        request = GenerationRequest(f"{at}", prompt, new_tokens, GREEDY, **fields)
        return [t async for output in engine.generate(request) for t in output.token_ids]

    return await asyncio.gather(*(one(at, prompt) for at, prompt in enumerate(prompts)))


@pytest.mark.parametrize("slots", [2, 6])
async def test_a_mix_of_any_lengths_equals_generate(checkpoint: Path, slots: int) -> None:
    """Chunked, shared and with more requests than slots, which are used again."""
    rng = random.Random(0)
    prompts = [[rng.randrange(250) for _ in range(n)] for n in (1, 3, 40, 90, 120, 7)]
    prompts += [[*prompts[4][:100], 9, 8], [*prompts[3][:64], 1]]
    engine = BatchingEngine(spec(checkpoint, max_running_requests=slots))
    engine.start()
    first = await answers(engine, prompts, 30)
    again = await answers(engine, prompts, 30)
    await engine.drain()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for prompt, found in zip(prompts, first, strict=True):
        assert found == greedy(model, prompt, 30)
    assert again == first


async def test_a_grammar_is_followed(checkpoint: Path) -> None:
    """By the same constraints as in any engine that samples here."""
    engine = BatchingEngine(spec(checkpoint))
    engine.start()
    (found,) = await answers(engine, [[5, 6]], 20, grammar=Grammar("regex", "(ab){3}"))
    await engine.drain()
    assert TextTokenizer(checkpoint).decode(found) == "ababab"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "model.gguf").unlink(), "needs one .gguf file, and there are 0"),
        (lambda d: shutil.copy(d / "model.gguf", d / "b.gguf"), "and there are 2"),
        (lambda d: (d / "model.gguf").write_bytes(b"GGUF"), "cannot load it"),
        (lambda d: (d / "config.json").unlink(), r"no config\.json"),
        (lambda d: (d / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    ],
)
def test_a_directory_that_lacks_something_is_refused(
    checkpoint: Path, tmp_path: Path, change: Any, message: str
) -> None:
    """With what is missing."""
    shutil.copytree(checkpoint, tmp_path / "m")
    change(tmp_path / "m")
    with pytest.raises(CheckpointError, match=message):
        BatchingEngine(spec(tmp_path / "m")).start()


@pytest.mark.parametrize("larger", [True, False])
def test_another_models_tokenizer_is_refused(
    checkpoint: Path, tmp_path: Path, larger: bool
) -> None:
    """One with more tokens than the file has, or with other ones."""
    shutil.copytree(checkpoint, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    if larger:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.add_tokens(["<more>"])
    else:
        tokenizer = Tokenizer(models.BPE({chr(65 + at): at for at in range(50)}, []))
    tokenizer.save(str(path))
    with pytest.raises(CheckpointError, match="belong to different models"):
        BatchingEngine(spec(tmp_path / "m")).start()


def test_without_the_library_the_load_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line."""
    monkeypatch.delitem(sys.modules, "omai_ray.engines.chat.llama_cpp_runner", raising=False)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"pip install 'omai-ray\[llama-cpp\]'"):
        BatchingEngine(spec(checkpoint)).start()
