"""Texts per second of the embedding engine on a GPU, against sentence-transformers on the same one.

`python benchmarks/embedding_gpu.py [--quick] [--detail]`: two shapes, MiniLM (6 layers, 384 wide)
and a decoder of 0.6B parameters (28 layers, 1024 wide, last token), with MiniLM's tokenizer and
random weights that are made on the spot: speed does not depend on their values. Both sides get the
same weights in bfloat16 and the same texts, in turns; medians over the rounds.
sentence-transformers runs at whichever batch size is best in this run. Ends with a line of JSON.

Needs torch, transformers, tokenizers, sentence-transformers and pydantic; neither Ray nor FastAPI.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from transformers import AutoModel, BertConfig, Qwen3Config  # noqa: E402

from benchmarks.embedding import docstrings  # noqa: E402
from omai_ray.catalog import ModelSpec, locate  # noqa: E402
from omai_ray.engines.embedding.engine import EmbeddingEngine  # noqa: E402

Embed = Callable[[list[str]], Any]
SLICE = 4096  # texts that are tokenised in one go, ahead of the forward
CONTEXT = 512
PEAK = (8192, 8192, 8192)
MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": CONTEXT,
}
DECODER = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "use_cache": False,
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": CONTEXT,
}


@dataclass(frozen=True)
class Shape:
    """A model to be made, and how much of it is measured."""

    name: str
    config: Any
    pooling: str
    texts: int
    rounds: int
    batch_sizes: Sequence[int]


def shapes(vocabulary: int, *, quick: bool, tiny: bool) -> list[Shape]:
    """Return what is measured."""
    shared = {"vocab_size": vocabulary, "pad_token_id": 0}
    encoder = BertConfig(**{**MINILM, **(TINY if tiny else {}), **shared})
    decoder = Qwen3Config(**{**DECODER, **(TINY if tiny else {}), **shared})
    if tiny:
        return [
            Shape("minilm", encoder, "mean", 60, 2, (8, 32)),
            Shape("decoder", decoder, "lasttoken", 60, 2, (8, 32)),
        ]
    return [
        Shape("minilm", encoder, "mean", 8192 if quick else 32768, 3 if quick else 5,
              (256, 1024) if quick else (32, 128, 256, 512, 1024, 2048)),
        Shape("decoder", decoder, "lasttoken", 1024 if quick else 4096, 2 if quick else 3,
              (64, 128) if quick else (16, 32, 64, 128, 256)),
    ]  # fmt: skip


def texts_of(count: int) -> list[str]:
    """Return docstrings, all of them different: more than there are begin at another word."""
    found = docstrings(count)
    texts, turn = list(found), 0
    rng = np.random.default_rng(0)
    while len(texts) < count:
        words = found[turn % len(found)].split()
        start = int(rng.integers(1, len(words))) if len(words) > 1 else 0
        texts.append(" ".join([*words[start:], *words[:start]]))
        turn += 1
    return texts


def save_checkpoint(shape: Shape, tokenizer: Path, folder: Path, device: str) -> Path:
    """Write the model in the sentence-transformers layout, its weights in bfloat16."""
    directory = folder / shape.name
    directory.mkdir()
    shutil.copy(tokenizer / "tokenizer.json", directory)
    named = json.loads((tokenizer / "tokenizer_config.json").read_text())
    named |= {"model_max_length": CONTEXT, "model_input_names": ["input_ids", "attention_mask"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModel.from_config(shape.config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    write = {
        "sentence_bert_config.json": {"max_seq_length": CONTEXT, "do_lower_case": False},
        "1_Pooling/config.json": {
            "embedding_dimension": shape.config.hidden_size,
            "pooling_mode": shape.pooling,
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling",
             "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize",
             "type": "sentence_transformers.models.Normalize"},
        ],
    }  # fmt: skip
    (directory / "1_Pooling").mkdir()
    (directory / "2_Normalize").mkdir()
    for name, value in write.items():
        (directory / name).write_text(json.dumps(value))
    return directory


def ahead(slices: list[Any], make: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield what is made of each slice, by a thread that is up to two slices ahead."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Any]] = deque()
        for part in slices:
            waiting.append(pool.submit(make, part))
            if len(waiting) > 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def omai_ray(engine: EmbeddingEngine) -> Embed:
    """Embed texts as a bulk actor does: each slice is tokenised while the one before it runs."""

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [engine.tokenizer.shorten(ids) for ids in engine.tokenize(texts)]

    def embed(texts: list[str]) -> Any:
        slices = [texts[at : at + SLICE] for at in range(0, len(texts), SLICE)]
        return np.concatenate([engine.embed_ids(ids) for ids in ahead(slices, tokenize)])

    return embed


def peer(model: SentenceTransformer, batch_size: int) -> Embed:
    """Embed texts with sentence-transformers, its results in numpy as it gives them."""
    return lambda texts: model.encode(texts, batch_size=batch_size, show_progress_bar=False)


def load_peer(directory: Path, dtype: torch.dtype, device: str) -> SentenceTransformer:
    """Load sentence-transformers' model."""
    return SentenceTransformer(str(directory), device=device, model_kwargs={"dtype": dtype})


def seconds(work: Callable[[], Any]) -> float:
    """Return how long it takes, everything that it started on the GPU included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def gemm_rate(device: str, rows: int, inner: int, columns: int) -> float:
    """Return the FLOP/s of a bfloat16 product of random values: the median of 30."""
    a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    b = torch.randn(columns, inner, device=device, dtype=torch.bfloat16).t()
    taken = [seconds(lambda: a @ b) for _ in range(35)][5:]
    return 2 * rows * inner * columns / statistics.median(taken)


def model_flops(config: Any, lengths: Any) -> float:
    """Return the multiplications and additions of a forward over texts of these lengths."""
    width, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    gated = 3 if config.model_type == "qwen3" else 2
    weights = 2 * width * head * (heads + shared) + gated * width * config.intermediate_size
    causal = 2 if config.model_type == "qwen3" else 1
    attention = 4 * layers * heads * head / causal
    return float(2 * layers * weights * lengths.sum() + attention * (lengths**2).sum())


def cosines(found: Any, reference: Any) -> Any:
    """Return the cosine of each row to its reference."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    return (found * reference).sum(1) / norms


def measure(
    shape: Shape, directory: Path, device: str, peak: float, *, detail: bool
) -> dict[str, Any]:
    """Measure one shape, print its table and return its figures."""
    texts = texts_of(shape.texts)
    started = time.perf_counter()
    spec = ModelSpec(
        name=shape.name,
        task="embedding",
        source=str(directory),
        dtype="bfloat16",
        num_gpus=1 if device == "cuda" else 0,
    )
    engine = EmbeddingEngine(spec)
    ours = omai_ray(engine)
    ours(texts[: 2 * SLICE])
    loaded_s = time.perf_counter() - started
    print(
        f"{shape.name}: loaded in {loaded_s:.1f} s, packs {engine._encoder.packs}, "
        f"steps of {engine.step_tokens} tokens"
    )
    model = load_peer(directory, torch.bfloat16, device)
    some = texts[: shape.texts // 4]
    rates: dict[int, float] = {}
    for size in shape.batch_sizes:
        peer(model, size)(some[:size])
        rates[size] = len(some) / seconds(lambda size=size: peer(model, size)(some))
    best = max(rates, key=lambda size: rates[size])
    theirs = peer(model, best)
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(shape.rounds):
        taken["ours"].append(seconds(lambda: ours(texts)))
        taken["theirs"].append(seconds(lambda: theirs(texts)))
    ids = [engine.tokenizer.shorten(found) for found in engine.tokenize(texts)]
    lengths = np.array([len(found) for found in ids])
    sample = texts[:: max(1, len(texts) // 256)]
    reference = load_peer(directory, torch.float32, device).encode(
        sample, batch_size=32, show_progress_bar=False
    )
    ours_s, theirs_s = (statistics.median(taken[name]) for name in ("ours", "theirs"))
    flops = model_flops(shape.config, lengths)
    forward_s = min(seconds(lambda: engine.embed_ids(ids)) for _ in range(2))
    tokenise_s = seconds(lambda: engine.tokenize(texts))
    near, nearby = cosines(ours(sample), reference), cosines(theirs(sample), reference)
    count = len(texts)
    print(f"\n{shape.name}, random weights, {count} texts, mean {lengths.mean():.1f} tokens, "
          f"longest {lengths.max()}\n")  # fmt: skip
    print(
        "| | texts/s | tokens/s | TFLOP/s of the model | share of the bf16 product | least cosine |"
    )
    print("|---|---|---|---|---|---|")
    rows = [
        ("this engine, texts to vectors", ours_s, near.min()),
        ("this engine, ids to vectors", forward_s, near.min()),
        (f"sentence-transformers bf16, batch {best}", theirs_s, nearby.min()),
    ]
    for name, spent, cosine in rows:
        speed = f"{count / spent:.0f} | {lengths.sum() / spent:.0f} | {flops / spent / 1e12:.1f}"
        print(f"| {name} | {speed} | {flops / spent / peak:.3f} | {cosine:.5f} |")
    print(
        f"| tokenising alone | {count / tokenise_s:.0f} | {lengths.sum() / tokenise_s:.0f} | | | |"
    )
    by_size = ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items())
    print(f"sentence-transformers by batch size: {by_size} texts/s\n")
    if detail:
        show_detail(engine, ids)
    name = shape.name
    return {
        f"vs_sentence_transformers_{name}": round(theirs_s / ours_s, 2),
        f"gemm_peak_share_{name}": round(flops / ours_s / peak, 3),
        f"gemm_peak_share_ids_{name}": round(flops / forward_s / peak, 3),
        f"min_cosine_{name}": round(float(near.min()), 6),
        f"texts_per_s_{name}": round(count / ours_s, 1),
        f"texts_per_s_ids_{name}": round(count / forward_s, 1),
        f"texts_per_s_sentence_transformers_{name}": round(count / theirs_s, 1),
        f"seconds_{name}": {key: [round(s, 3) for s in spent] for key, spent in taken.items()},
        f"batch_size_sentence_transformers_{name}": best,
        f"texts_{name}": count,
        f"mean_tokens_{name}": round(float(lengths.mean()), 1),
        f"packs_{name}": engine._encoder.packs,
    }


def show_detail(engine: EmbeddingEngine, ids: list[list[int]]) -> None:
    """Print where the time goes: by the size of a step and by kernel."""
    ids = ids[:8192]
    usual = engine.step_tokens
    for tokens in (8192, 16384, 32768, 65536, 131072):
        engine.step_tokens = tokens
        engine.embed_ids(ids)
        rate = len(ids) / min(seconds(lambda: engine.embed_ids(ids)) for _ in range(2))
        print(f"steps of {tokens} tokens: {rate:.0f} texts/s")
    engine.step_tokens = usual
    arrays = engine.check(ids)
    checked_s = seconds(lambda: engine.check(ids))
    embedded_s = seconds(lambda: engine.embed_arrays(arrays))
    print(f"check alone: {len(ids) / checked_s:.0f} texts/s")
    print(f"arrays to vectors: {len(ids) / embedded_s:.0f} texts/s")
    if torch.cuda.is_available():
        step = arrays[: max(1, usual // 90)]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            engine.embed_arrays(step)
        by_kernel = profile.key_averages()
        print(f"one step of {sum(map(len, step))} tokens:")
        print(by_kernel.table("self_cuda_time_total", row_limit=18, max_name_column_width=60))


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer texts, rounds, batch sizes")
    parser.add_argument("--detail", action="store_true", help="print where the time goes, too")
    parser.add_argument("--only", choices=["minilm", "decoder"], help="one shape alone")
    parser.add_argument("--tokenizer", type=Path, help="a folder with MiniLM's tokenizer.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does the program work?")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokenizer = options.tokenizer or locate(
        ModelSpec(name="m", task="embedding", source="builtin:all-minilm-l6-v2")
    )
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    peak = gemm_rate(options.device, *(PEAK if options.device == "cuda" else (256, 256, 256)))
    gpu = options.device == "cuda"
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if gpu else "none",
        "cpus": os.cpu_count(),
        "gemm_tflops": round(peak / 1e12, 1),
        "weights": "random",
        **{name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "tokenizers": version("tokenizers"),
    }
    print(
        f"{figures['gpu']}, {figures['cpus']} CPUs, bf16 product {PEAK}: {peak / 1e12:.0f} TFLOP/s"
    )
    started = time.perf_counter()
    for shape in shapes(len(vocabulary), quick=options.quick, tiny=options.tiny):
        if options.only in (None, shape.name):
            with tempfile.TemporaryDirectory() as folder:
                model = save_checkpoint(shape, tokenizer, Path(folder), options.device)
                figures |= measure(shape, model, options.device, peak, detail=options.detail)
            if gpu:
                torch.cuda.empty_cache()
    figures["wall_s"] = round(time.perf_counter() - started, 1)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
