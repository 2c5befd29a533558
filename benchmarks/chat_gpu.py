"""Tokens per second of the chat engine on a GPU against transformers' own ways of generating.

`python benchmarks/chat_gpu.py [--quick] [--shapes 1b 8b]`: Llama shapes of 1.2 and 8 billion
parameters with random weights in bfloat16, prompts of 128 random tokens, 128 new tokens each,
greedy and without an end; 1, 64 and 256 at once. Everyone runs the same weights and prompts in a
process of its own on the same GPU, one after the other in each round; medians over the rounds.
The share of the bandwidth is of weights read for each token at 1, against a copy's read and write.
Needs one NVIDIA GPU with 80 GB, and 20 GB of /dev/shm. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from chat_process import PROMPT_TOKENS, Runner
from transformers import LlamaConfig, LlamaForCausalLM

from omai_ray.catalog import ModelSpec, locate

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
CASES = [
    ("omai_ray", 1),
    ("transformers_cb_gpu", 1),
    ("generate_gpu", 1),
    ("omai_ray", 64),
    ("transformers_cb_gpu", 64),
    ("omai_ray", 256),
    ("transformers_cb_gpu", 256),
]


def checkpoint(shape: str, folder: Path) -> Path:
    """Write a model of that shape, with the built-in model's tokenizer."""
    config = LlamaConfig(
        vocab_size=128256,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
        **SHAPES[shape],
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    path = folder / shape
    model.save_pretrained(path, max_shard_size="40GB")
    del model
    torch.cuda.empty_cache()
    builtin = locate(ModelSpec(name="m", task="chat", source="builtin:omai-chat-small"))
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(builtin / name, path / name)
    return path


def copied_gb_per_s() -> float:
    """Return the rate at which the GPU copies its memory, bytes read and written together."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    milliseconds = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    del source, target
    torch.cuda.empty_cache()
    return 2 * 2**30 / statistics.median(milliseconds) / 1e6


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": version("torch"),
        "triton": version("triton"),
        "transformers": version("transformers"),
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": 128,
        "copy_gb_per_s": round(copied_gb_per_s(), 1),
    }
    print("| shape | runner | at once | tokens/s, prefill included | slowest and fastest round |")
    print("|---|---|---|---|---|", flush=True)
    for shape in options.shapes:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            figures |= measure(shape, 1 if options.quick else 3, Path(folder), figures)
    print(json.dumps(figures))
    return 0


def measure(shape: str, rounds: int, folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Measure a shape, print its rows and return its figures."""
    model = checkpoint(shape, folder)
    weights = (model / "model.safetensors").stat().st_size
    new_tokens = known["new_tokens"]
    names = list(dict.fromkeys(name for name, _ in CASES))
    with ThreadPoolExecutor() as pool:  # loading takes most of the time
        starting = [pool.submit(Runner, name, model, new_tokens, folder, "cuda") for name in names]
    runners = {name: started.result() for name, started in zip(names, starting, strict=True)}
    seconds: dict[tuple[str, int], list[float]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for name, count in CASES:
            seconds[name, count].append(runners[name].run(count))
            print(shape, name, count, f"{seconds[name, count][-1]:.2f} s", file=sys.stderr)
    for runner in runners.values():
        runner.close()
    figures: dict[str, Any] = {}
    rates = {}
    for name, count in CASES:
        found, tokens = seconds[name, count], count * new_tokens
        rates[name, count] = tokens / statistics.median(found)
        spread = f"{tokens / max(found):.0f} to {tokens / min(found):.0f}"
        print(f"| {shape} | {name} | {count} | {rates[name, count]:.0f} | {spread} |", flush=True)
        figures[f"{shape}_{name}_{count}_tokens_per_s"] = round(rates[name, count], 1)
        if name != "omai_ray":
            ratio = rates["omai_ray", count] / rates[name, count]
            figures[f"{shape}_vs_{name.removesuffix('_gpu')}_{count}"] = round(ratio, 2)
    share = rates["omai_ray", 1] * weights / 1e9 / known["copy_gb_per_s"]
    figures[f"{shape}_bandwidth_share_1"] = round(share, 3)
    return figures


if __name__ == "__main__":
    sys.exit(main())
