"""One way of embedding texts, in a process of its own: run by embedding.py, never by hand.

`embedding_runner.py NAME MODEL TEXTS VECTORS` reads texts (a JSON list), loads MODEL (a directory
in the sentence-transformers layout), embeds once to warm up, writes the vectors (float32 [N, D],
.npy) and prints `ready`. Then each line `run` on stdin embeds the texts again and prints how many
seconds it took. Tokenising is part of every run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Embed = Callable[[list[str]], Any]
BATCH_TOKENS = 2048


def omai_ray(model: str, dtype: str) -> Embed:
    """Embed as a bulk actor and a replica do."""
    from omai_ray.catalog import ModelSpec
    from omai_ray.engines.embedding.engine import EmbeddingEngine

    engine = EmbeddingEngine(ModelSpec(name="m", task="embedding", source=model, dtype=dtype))

    def embed(texts: list[str]) -> Any:
        ids = [engine.tokenizer.shorten(found) for found in engine.tokenize(texts)]
        return engine.embed_ids(ids)

    return embed


def sentence_transformers(model: str, dtype: str) -> Embed:
    """Embed with the library's defaults, in this dtype."""
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"dtype": getattr(torch, dtype)}
    loaded = SentenceTransformer(model, device="cpu", model_kwargs=options)
    return lambda texts: loaded.encode(texts, show_progress_bar=False)


def infinity(model: str, dtype: str) -> Embed:
    """Embed through Infinity's engine, its own batching included."""
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    arguments = EngineArgs(
        model_name_or_path=model, engine="torch", device="cpu", dtype=dtype, bettertransformer=False
    )
    engine = AsyncEmbeddingEngine.from_args(arguments)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    def embed(texts: list[str]) -> Any:
        vectors, _ = loop.run_until_complete(engine.embed(sentences=texts))
        return np.stack(vectors)

    return embed


class Sorted:
    """A graph run on length-sorted, padded batches of BATCH_TOKENS: kinder than its own defaults.

    run(ids, mask), both int64 [B, T], gives token vectors, [B, T, D].
    """

    def __init__(self, model: str, run: Callable[[Any, Any], Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
        settings = json.loads(Path(model, "sentence_bert_config.json").read_text())
        self._tokenizer.enable_truncation(settings["max_seq_length"])
        self._tokenizer.no_padding()
        self._run = run

    def batches(self, texts: list[str]) -> Any:
        """Yield (rows, ids, mask)."""
        found = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        lengths = np.array([len(ids) for ids in found])
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, BATCH_TOKENS // lengths[order[start]])]
            mask = np.arange(lengths[rows].max()) < lengths[rows][:, None]
            ids = np.zeros(mask.shape, dtype=np.int64)
            ids[mask] = np.concatenate([found[row] for row in rows])
            yield rows, ids, mask.astype(np.int64)
            start += len(rows)

    def __call__(self, texts: list[str]) -> Any:
        """Embed, mean pooling and unit length."""
        vectors: Any = None
        for rows, ids, mask in self.batches(texts):
            hidden = np.asarray(self._run(ids, mask), dtype=np.float32)
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            if vectors is None:
                vectors = np.empty((len(texts), pooled.shape[1]), dtype=np.float32)
            vectors[rows] = pooled
        return vectors


def _torch_encoder(model: str) -> Any:
    import torch
    from transformers import AutoModel

    class Encoder(torch.nn.Module):
        """The encoder alone, with what it takes as plain arguments."""

        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(model, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    return Encoder()


def onnxruntime(model: str, dtype: str) -> Embed:
    """Embed with onnxruntime in float32."""
    import tempfile

    import onnxruntime as ort
    import torch

    path = f"{tempfile.mkdtemp()}/model.onnx"
    example = torch.ones(2, 8, dtype=torch.int64)
    torch.onnx.export(
        _torch_encoder(model),
        (example, example),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["hidden"],
        dynamic_axes={name: {0: "b", 1: "t"} for name in ("input_ids", "attention_mask", "hidden")},
        dynamo=False,
    )
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return Sorted(
        model,
        lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0],
    )


def openvino(model: str, dtype: str) -> Embed:
    """Embed with OpenVINO, in float32, bfloat16, or int8 after calibration."""
    import openvino as ov
    import torch

    example = torch.ones(2, 8, dtype=torch.int64)
    graph = ov.convert_model(
        _torch_encoder(model), example_input={"input_ids": example, "attention_mask": example}
    )
    if dtype == "int8":
        graph = _quantized(model, graph)
    hint = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}[dtype]
    compiled = ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    request = compiled.create_infer_request()
    return Sorted(
        model,
        lambda ids, mask: request.infer({"input_ids": ids, "attention_mask": mask})[0],
    )


def _quantized(model: str, graph: Any) -> Any:
    import nncf

    texts = json.loads(Path(sys.argv[3]).read_text())[:128]
    batches = [
        {"input_ids": ids, "attention_mask": mask}
        for _, ids, mask in Sorted(model, lambda ids, mask: ids).batches(texts)
    ]
    return nncf.quantize(graph, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER)


RUNNERS: dict[str, tuple[Callable[[str, str], Embed], str]] = {
    "omai_ray": (omai_ray, "float32"),
    "omai_ray_bf16": (omai_ray, "bfloat16"),
    "omai_ray_int8": (omai_ray, "int8"),
    "sentence_transformers": (sentence_transformers, "float32"),
    "sentence_transformers_bf16": (sentence_transformers, "bfloat16"),
    "infinity": (infinity, "float32"),
    "infinity_bf16": (infinity, "bfloat16"),
    "onnxruntime": (onnxruntime, "float32"),
    "openvino": (openvino, "float32"),
    "openvino_bf16": (openvino, "bfloat16"),
    "openvino_int8": (openvino, "int8"),
}


def main() -> None:
    """Run as a program."""
    name, model, texts_file, vectors_file = sys.argv[1:]
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not be taken for ours
    make, dtype = RUNNERS[name]
    texts = json.loads(Path(texts_file).read_text())
    embed = make(model, dtype)
    np.save(vectors_file, np.asarray(embed(texts), dtype=np.float32))
    print("ready", file=out, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        embed(texts)
        print(time.perf_counter() - started, file=out, flush=True)


if __name__ == "__main__":
    main()
