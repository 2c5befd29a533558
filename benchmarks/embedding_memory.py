"""Resident memory of the embedding engine over a million texts, beside sentence-transformers.

`python benchmarks/embedding_memory.py [--quick]`: all-MiniLM-L6-v2 on this machine's CPU embeds
random token ids, most inputs short and some up to 256 tokens, so that hardly a batch is like
another. Each way runs in a process of its own; the peer, in .venv-bench (`make bench-setup`), gets
a tenth of the texts, as it is slower. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench" / "peers" / "bin" / "python"
MODEL = "builtin:all-minilm-l6-v2"
STEP = 2000
if TYPE_CHECKING:
    from omai_ray.catalog import Dtype

Embed = Callable[[list[Any]], object]


def inputs(count: int) -> Iterator[list[Any]]:
    """Yield steps of token ids, without special tokens."""
    rng = np.random.default_rng(0)
    for _ in range(count // STEP):
        lengths = np.minimum(1 + rng.geometric(0.25, STEP) * rng.choice([1] * 15 + [8], STEP), 250)
        yield [rng.integers(1000, 20000, length) for length in lengths]


def resident_mib() -> int:
    """Return the memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def engine(dtype: str) -> Embed:
    """Embed as a bulk actor and a replica do."""
    from omai_ray.catalog import ModelSpec
    from omai_ray.engines.embedding.engine import EmbeddingEngine

    loaded = EmbeddingEngine(
        ModelSpec(name="m", task="embedding", source=MODEL, dtype=cast("Dtype", dtype))
    )
    return loaded.embed_ids


def sentence_transformers(model: str) -> Embed:
    """Embed with the library's defaults, from texts of about as many tokens."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")
    words = [token for token in loaded.tokenizer.get_vocab() if token.isalpha()]

    def embed(step: list[Any]) -> object:
        texts = [" ".join(words[index % len(words)] for index in ids) for ids in step]
        return loaded.encode(texts, show_progress_bar=False)

    return embed


def child(kind: str, model: str, count: int) -> None:
    """Embed, and print the memory held ten times on the way."""
    embed = sentence_transformers(model) if kind == "sentence_transformers" else engine(kind)
    every = max(1, count // STEP // 10)
    for done, step in enumerate(inputs(count), 1):
        embed(step)
        if done % every == 0:
            print(json.dumps([done * STEP, resident_mib()]), flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40,000 texts instead of a million")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, model, count = options.child
        child(kind, model, int(count))
        return 0
    from omai_ray.catalog import ModelSpec, locate

    model = locate(ModelSpec(name="m", task="embedding", source=MODEL))
    texts = 40_000 if options.quick else 1_000_000
    figures: dict[str, Any] = {"texts": texts, "peer_texts": texts // 10}
    for kind in ("bfloat16", "int8", "sentence_transformers"):
        peer = kind == "sentence_transformers"
        python, count = (str(PEERS), texts // 10) if peer else (sys.executable, texts)
        command = [python, __file__, "--child", kind, str(model), str(count)]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        seen = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
        print(f"{kind:22}" + "".join(f"{mib:7}" for _, mib in seen) + "  MiB")
        memory = [mib for _, mib in seen]
        figures[f"{kind}_mib"] = memory
        figures[f"{kind}_growth_of_second_half"] = round(memory[-1] / memory[len(memory) // 2], 3)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
