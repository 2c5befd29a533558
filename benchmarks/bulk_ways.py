"""One way of embedding a parquet corpus, in a process of its own: run by bulk.py, never by hand.

`bulk_ways.py WAY MODEL IN OUT` prints one line of JSON: rows, and the seconds from the first row's
start to the last one's end, after Ray and the model have started.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SLICE = 2048
BATCH_ROWS = 256


def bare_engine(model: str, source: str, _: str) -> tuple[int, float]:
    """Run the engine in a loop over texts in memory: no Ray, no IO, all threads."""
    from omai_ray.catalog import ModelSpec
    from omai_ray.engines.embedding.engine import EmbeddingEngine

    texts = pq.read_table(source, columns=["text"])["text"].to_pylist()
    engine = EmbeddingEngine(ModelSpec(name="m", task="embedding", source=model))

    def embed(part: list[str]) -> None:
        engine.embed_ids([engine.tokenizer.shorten(ids) for ids in engine.tokenize(part)])

    embed(texts[:SLICE])
    started = time.perf_counter()
    for first in range(0, len(texts), SLICE):
        embed(texts[first : first + SLICE])
    return len(texts), time.perf_counter() - started


def sentence_transformers(model: str, source: str, output: str) -> tuple[int, float]:
    """Run the script that everybody writes: read, `encode`, write."""
    import pandas as pd
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")
    loaded.encode(["warm up"] * 64, show_progress_bar=False)
    started = time.perf_counter()
    table = pd.read_parquet(source)
    vectors = loaded.encode(table["text"].tolist(), show_progress_bar=False)
    table["embedding"] = list(vectors)
    Path(output).mkdir(parents=True)
    table.to_parquet(f"{output}/all.parquet")
    return len(table), time.perf_counter() - started


class _Encoder:
    """Sentence-transformers in an actor of Ray Data with one CPU, in bfloat16 where that has it."""

    def __init__(self, model: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        from omai_ray.engines.device import has_bfloat16

        torch.set_num_threads(1)
        # Emulated it takes many times as long as float32, and nobody would choose it.
        dtype = torch.bfloat16 if has_bfloat16() else torch.float32
        self._model = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": dtype})
        self._model.encode(["warm up"] * 64, show_progress_bar=False)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        started = time.time()
        vectors = self._model.encode(list(batch["text"]), show_progress_bar=False)
        ended = np.full(len(vectors), time.time())
        times = {"started": np.full(len(vectors), started), "ended": ended}
        return {**batch, "embedding": vectors, **times}


def ray_data(model: str, source: str, output: str) -> tuple[int, float]:
    """Run `map_batches` as Ray's documentation shows it, an actor for each CPU."""
    import ray
    import ray.data

    cpus = os.cpu_count() or 1
    # One more than there are: with all of them held by actors, Ray Data never gets to read.
    ray.init(address="local", num_cpus=cpus + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_parquet(source).map_batches(
        _Encoder,
        batch_size=BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=cpus),
        fn_constructor_args=(model,),
        num_cpus=1,
    )
    data.write_parquet(output)
    written = time.time()
    started = min(pq.read_table(output, columns=["started"])["started"].to_pylist())
    rows = pq.read_table(output, columns=["text"]).num_rows
    ray.shutdown()
    return rows, written - started


WAYS = {
    "bare_engine": bare_engine,
    "sentence_transformers": sentence_transformers,
    "plain_ray_data": ray_data,
}

if __name__ == "__main__":
    way, model, source, output = sys.argv[1:]
    rows, seconds = WAYS[way](model, source, output)
    print(json.dumps({"rows": rows, "seconds": seconds}))
