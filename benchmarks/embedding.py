"""Texts per second of the embedding engine against what a user would otherwise run.

`python benchmarks/embedding.py [--quick]`: all-MiniLM-L6-v2 on this machine's CPU, the same weights
and texts for everyone, one after the other in each round, medians over the rounds. Peers run in
.venv-bench (`make bench-setup`). Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.device import has_bfloat16, has_int8
from omai_ray.engines.embedding.batcher import EmbeddingBatcher
from omai_ray.engines.embedding.engine import EmbeddingEngine

ROOT = Path(__file__).resolve().parent.parent
RUNNER = Path(__file__).with_name("embedding_runner.py")
PEERS = ROOT / ".venv-bench"
SHORT_TEXT = "How do I reset my password?"
MIN_CHARACTERS = 80
TAIL = 512  # tokens
GEMM = (4096, 384, 1536)
NEEDS_INT8 = {"omai_ray_int8"}
BF16_ONLY = {"omai_ray_bf16", "sentence_transformers_bf16", "infinity_bf16", "openvino_bf16"}
RUNNERS = (
    *("omai_ray", "omai_ray_bf16", "omai_ray_int8"),
    *("sentence_transformers", "sentence_transformers_bf16"),
    *("infinity", "infinity_bf16", "onnxruntime"),
    *("openvino", "openvino_bf16", "openvino_int8"),
)


def docstrings(count: int) -> list[str]:
    """Return whole docstrings of the standard library: about 90 tokens, with a long tail."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib"} & set(path.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) >= MIN_CHARACTERS:
                    found.setdefault(text)
    texts = list(found)
    return [texts[at] for at in np.random.default_rng(0).permutation(len(texts))[:count]]


def checkpoint(folder: Path) -> Path:
    """Return a copy of all-MiniLM-L6-v2 that takes all the tokens it was made for, not half."""
    source = locate(ModelSpec(name="m", task="embedding", source="builtin:all-minilm-l6-v2"))
    copy = shutil.copytree(source, folder / "model")
    settings = copy / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": TAIL}))
    return copy


def interpreter(name: str) -> str:
    """Return the Python of the environment that a runner needs."""
    if name.startswith("omai_ray"):
        return sys.executable
    return str(PEERS / ("infinity" if name.startswith("infinity") else "peers") / "bin/python")


class Runner:
    """One way of embedding, in its own process; only one of them works at a time."""

    def __init__(self, name: str, model: Path, texts: Path, folder: Path) -> None:
        self.name = name
        self.seconds: list[float] = []
        self._vectors = folder / f"{name}.npy"
        python = interpreter(name)
        log = (folder / f"{name}.log").open("w")
        self._process = subprocess.Popen(
            [python, str(RUNNER), name, str(model), str(texts), str(self._vectors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )
        log.close()
        if self._answer() != "ready":
            tail = (folder / f"{name}.log").read_text().strip().splitlines()[-3:]
            raise SystemExit(f"{name} could not be started: {' | '.join(tail)}")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self) -> None:
        """Embed the texts once more."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        self.seconds.append(float(self._answer()))

    def vectors(self) -> Any:
        """Return what it embedded, float32 [N, D]."""
        return np.load(self._vectors)

    def close(self) -> None:
        """End the process; some keep threads that would outlive it."""
        self._process.kill()
        self._process.communicate()


def gemm_gflops(dtype: torch.dtype) -> float:
    """Return the matrix multiplication rate of a shape as the model's, the best of 20."""
    rows, inner, columns = GEMM
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * columns / best / 1e9


def model_flops(engine: EmbeddingEngine, lengths: Any) -> float:
    """Return the multiplications and additions of a forward over texts of these lengths."""
    config: Any = engine._encoder._model.config
    width, layers = config.hidden_size, config.num_hidden_layers
    linear = 2 * layers * (4 * width * width + 2 * width * config.intermediate_size)
    attention = 4 * layers * width
    return float(linear * lengths.sum() + attention * (lengths**2).sum())


def bare_forward_ms(model: Any, ids: list[list[int]], rounds: int) -> float:
    """Return the median milliseconds of the model alone, called as transformers documents it."""
    tensor = torch.tensor(ids)
    mask = torch.ones_like(tensor)
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        with torch.inference_mode():
            model(input_ids=tensor, attention_mask=mask)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


async def served_ms(engine: EmbeddingEngine, ids: list[list[int]], rounds: int) -> float:
    """Return the median milliseconds of one text through the batcher."""
    batcher = EmbeddingBatcher(engine, max_queued=8)
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        await batcher.embed(ids)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


def single_text(spec: ModelSpec, rounds: int) -> tuple[float, float]:
    """Return median milliseconds of one short text: served, and the bare forward.

    Each has a thread of its own, which ends: threads that have computed keep workers that spin.
    """
    engine = EmbeddingEngine(spec)
    ids = engine.tokenize([SHORT_TEXT])
    with ThreadPoolExecutor(1) as pool:
        bare = AutoModel.from_pretrained(locate(spec), dtype=torch.float32).eval()
        bare_ms = pool.submit(bare_forward_ms, bare, ids, rounds).result()
    return asyncio.run(served_ms(engine, ids, rounds)), bare_ms


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    options = parser.parse_args()
    if not all(Path(interpreter(name)).exists() for name in RUNNERS):
        print("the peers are not installed: make bench-setup", file=sys.stderr)
        return 1
    count, rounds = (300, 3) if options.quick else (600, 7)
    with tempfile.TemporaryDirectory() as folder:
        measure(count, rounds, Path(folder))
    return 0


def measure(count: int, rounds: int, folder: Path) -> None:
    """Measure everything and print it."""
    model = checkpoint(folder)
    spec = ModelSpec(name="m", task="embedding", source=str(model), dtype="float32")
    engine = EmbeddingEngine(spec)
    texts = docstrings(count)
    lengths = np.array([min(len(ids), engine.context) for ids in engine.tokenize(texts)])
    absent = (set() if has_bfloat16() else BF16_ONLY) | (set() if has_int8() else NEEDS_INT8)
    names = [name for name in RUNNERS if name not in absent]
    figures: dict[str, Any] = {
        "texts": count,
        "mean_tokens": round(float(lengths.mean()), 1),
        "max_tokens": int(lengths.max()),
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "bfloat16": has_bfloat16(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    texts_file = folder / "texts.json"
    texts_file.write_text(json.dumps(texts))
    runners = [Runner(name, model, texts_file, folder) for name in names]
    for _ in range(rounds):
        for runner in runners:
            runner.run()
    report(runners, engine, lengths, figures)
    for runner in runners:
        runner.close()
    served, bare = single_text(spec, 50 if count < 600 else 200)
    figures["single_text_ms"] = round(served, 2)
    figures["single_text_vs_bare_forward"] = round(served / bare, 2)
    print(json.dumps(figures))


def report(
    runners: list[Runner], engine: EmbeddingEngine, lengths: Any, figures: dict[str, Any]
) -> None:
    """Print the table and add to the figures."""
    flops = model_flops(engine, lengths)
    median = {runner.name: statistics.median(runner.seconds) for runner in runners}
    reference = next(r for r in runners if r.name == "sentence_transformers").vectors()
    ours = "omai_ray_bf16" if "omai_ray_bf16" in median else "omai_ray"
    print("| runner | texts/s | GFLOP/s | slowest and fastest round | min cosine | mean cosine |")
    print("|---|---|---|---|---|---|")
    for runner in runners:
        cosines = (runner.vectors() * reference).sum(1)
        rate = len(lengths) / median[runner.name]
        slowest, fastest = len(lengths) / max(runner.seconds), len(lengths) / min(runner.seconds)
        gflops = flops / median[runner.name] / 1e9
        cosine = f"{cosines.min():.5f} | {cosines.mean():.5f}"
        rates = f"{rate:.1f} | {gflops:.0f} | {slowest:.0f} to {fastest:.0f}"
        print(f"| {runner.name} | {rates} | {cosine} |")
        figures[f"{runner.name}_texts_per_s"] = round(rate, 1)
        if runner.name == ours:
            dtype = torch.bfloat16 if ours.endswith("bf16") else torch.float32
            figures["min_cosine"] = round(float(cosines.min()), 6)
            figures["gemm_peak_share"] = round(gflops / gemm_gflops(dtype), 3)
        elif runner.name == "omai_ray_int8":
            figures["int8_min_cosine"] = round(float(cosines.min()), 6)
            figures["int8_mean_cosine"] = round(float(cosines.mean()), 6)
        elif not runner.name.startswith("omai_ray"):
            int8 = runner.name.endswith("int8") and "omai_ray_int8" in median
            like = "omai_ray_int8" if int8 else ours
            figures[f"vs_{runner.name}"] = round(median[runner.name] / median[like], 2)


if __name__ == "__main__":
    sys.exit(main())
