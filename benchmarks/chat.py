"""Tokens per second of the chat engine against transformers' own ways of generating, and llama.cpp.

`python benchmarks/chat.py [--quick] [--at 1 8 32]`: a Llama shape of 135 million parameters with
random weights in bfloat16 (float32 on a CPU without it), prompts of 128 random tokens, 128 new
tokens each (--quick: 48), greedy and without an end, so many at once as --at says. Everyone runs
the same weights and prompts in a process of its own, one after the other in each round; medians
over the rounds. The two that take a minute or more, transformers' continuous batching and its
server, take part in the first round only. Over HTTP, prompts are text, of about twice as many
tokens. llama.cpp needs the extra `llama-cpp`; `transformers serve` is run from .venv-bench (`make
bench-setup`). Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from chat_process import PROMPT_TOKENS, Runner
from gguf_llama import write_gguf
from transformers import LlamaConfig, LlamaForCausalLM

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.device import has_bfloat16

# Who runs how many at once, and what that is compared with.
CASES = [
    ("omai_ray", 1, None),
    ("generate", 1, "omai_ray"),
    ("llama_cpp", 1, "omai_ray"),
    ("omai_ray_llama_cpp", 1, None),
    ("omai_ray", 8, None),
    ("static_batch", 8, "omai_ray"),
    ("llama_cpp", 8, "omai_ray"),
    ("omai_ray", 32, None),
    ("static_batch", 32, "omai_ray"),
    ("llama_cpp", 32, "omai_ray"),
    ("omai_ray_llama_cpp", 32, None),
    ("transformers_cb", 32, "omai_ray"),
    ("omai_ray_serve", 32, None),
    ("transformers_serve", 32, "omai_ray_serve"),
]
ONCE = {"transformers_cb", "transformers_serve"}


def checkpoint(folder: Path) -> Path:
    """Write the model: SmolLM2-135M's shape, the built-in model's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16 if has_bfloat16() else torch.float32)
    path = folder / "model"
    model.save_pretrained(path)
    builtin = locate(ModelSpec(name="m", task="chat", source="builtin:omai-chat-small"))
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(builtin / name, path / name)
    return path


def read_gb_per_s() -> float:
    """Return the rate at which this process reads memory, all threads together."""
    values = torch.ones(2**28, dtype=torch.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - start)
    return values.numel() * 4 / statistics.median(seconds) / 1e9


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    counts = sorted({count for _, count, _ in CASES})
    parser.add_argument(
        "--at", type=int, nargs="+", choices=counts, default=counts, help="so many at once"
    )
    options = parser.parse_args()
    new_tokens, rounds = (48, 2) if options.quick else (128, 3)
    cases = [case for case in CASES if case[1] in options.at]
    with tempfile.TemporaryDirectory() as folder:
        measure(cases, new_tokens, rounds, Path(folder))
    return 0


def measure(
    cases: list[tuple[str, int, str | None]], new_tokens: int, rounds: int, folder: Path
) -> None:
    """Measure who runs how many at once, against whom, and print it."""
    model = checkpoint(folder)
    write_gguf(model)
    weights = (model / "model.safetensors").stat().st_size
    figures: dict[str, Any] = {
        "new_tokens": new_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "dtype": "bfloat16" if has_bfloat16() else "float32",
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "llama_cpp_python": version("llama_cpp_python"),
    }
    names = dict.fromkeys(name for name, _, _ in cases)
    seconds: dict[tuple[str, int], list[float]] = {(name, count): [] for name, count, _ in cases}
    runners = {
        name: Runner(name, model, new_tokens, folder) for name in names if "serve" not in name
    }
    bandwidths = []
    for turn in range(rounds):
        bandwidths.append(read_gb_per_s())
        for name, count, _ in cases:
            if name in runners and (turn == 0 or name not in ONCE):
                seconds[name, count].append(runners[name].run(count))
    figures["ttft_ms_at_32_per_s"] = round(runners["omai_ray"].run("ttft"), 1)
    figures["scheduler_overhead_64"] = round(runners["omai_ray"].run("overhead"), 4)
    for runner in runners.values():
        runner.close()
    for name in [name for name in names if name not in runners]:  # alone: they have processes
        runner = Runner(name, model, new_tokens, folder)
        for _ in range(1 if name in ONCE else rounds):
            seconds[name, 32].append(runner.run(32))
        runner.close()
    print("| runner | at once | tokens/s, prefill included | slowest and fastest round |")
    print("|---|---|---|---|")
    rates = {}
    for name, count, reference in cases:
        found, tokens = seconds[name, count], count * new_tokens
        rates[name, count] = tokens / statistics.median(found)
        spread = f"{tokens / max(found):.0f} to {tokens / min(found):.0f}"
        print(f"| {name} | {count} | {rates[name, count]:.1f} | {spread} |")
        figures[f"{name}_{count}_tokens_per_s"] = round(rates[name, count], 1)
        if reference is not None:
            ratio = rates[reference, count] / rates[name, count]
            figures[f"vs_{name}_{count}"] = round(ratio, 2)
    bandwidth = statistics.median(bandwidths)
    figures["read_gb_per_s"] = round(bandwidth, 1)
    if (alone := rates.get(("omai_ray", 1))) is not None:
        figures["bandwidth_share_1"] = round(alone * weights / 1e9 / bandwidth, 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
