"""Search an embedded corpus: `python examples/search.py OUT "parse a date" [--top N]`.

Reads what `omai-ray embed` wrote to OUT, a local directory, embeds the query with the model that
its footers name, in this process, and prints the rows whose vectors are nearest to it by cosine.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from omai_ray.errors import ConfigError, OMAiError
from omai_ray.settings import Settings, load_settings
from pipelines.embed_corpus import choose_model
from pipelines.engine import Engine, build_engine
from pipelines.job import EMBEDDING_COLUMN
from pipelines.sinks.rows import has_chunks

BATCH_ROWS = 8192
SNIPPET_CHARACTERS = 300

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """A row that was found: its cosine to the query, its file, its columns but the vector."""

    score: float
    file: str
    row: dict[str, Any]


def open_corpus(output: Path) -> tuple[list[Any], dict[str, str]]:
    """Return an output's files, and what the first one's footer says of their vectors.

    All of them have the same: a job refuses to mix. Raises ConfigError where it is no output.
    """
    if not output.is_dir():
        raise ConfigError(f"{output}: no such directory")
    try:
        files = list(ds.dataset(output, format="parquet", partitioning=None).get_fragments())
        metadata = (files[0].physical_schema.metadata or {}) if files else {}
    except pa.ArrowInvalid:  # of a file that is no parquet
        files, metadata = [], {}
    facts = {key.decode(): value.decode() for key, value in metadata.items()}
    if "omai.embedding_fingerprint" not in facts:
        raise ConfigError(f"{output}: holds no file that `omai-ray embed` wrote")
    return files, facts


def load_engine(
    facts: dict[str, str], settings: Settings, model: str | None, prompt: str | None
) -> Engine:
    """Load the model that made the vectors.

    model: its name or place, where the catalog's is another. prompt: that of queries, where the
    model has another one for them. Raises ConfigError where the model found is not the same: its
    vectors could not be compared.
    """
    spec = choose_model(model or facts["omai.model"], settings)
    if prompt is not None:
        spec = spec.model_copy(update={"prompt": prompt})
    engine = build_engine(spec)
    made_by = json.loads(facts["omai.embedding_provenance"])
    here = json.loads(json.dumps(engine.provenance))
    differing = {key for key in here | made_by if here.get(key) != made_by.get(key)}
    if prompt is not None:
        differing.discard("prompt")
    if differing:
        raise ConfigError(
            f"the vectors were made by '{facts['omai.model']}' of another kind: "
            f"{', '.join(sorted(differing))} of '{spec.name}' here differ"
        )
    return engine


def embed_query(engine: Engine, query: str) -> Vector:
    """Return the query's vector, of length one."""
    ids = engine.tokenizer.shorten(engine.tokenize([query])[0])
    vector: Vector = engine.embed_ids([ids])[0]
    return vector / np.linalg.norm(vector)


def search(files: Sequence[Any], output: Path, query: Vector, top: int) -> list[Hit]:
    """Return the nearest rows, the best first. Memory does not grow with the corpus."""
    best: list[Hit] = []
    for file in files:
        name = Path(file.path).relative_to(output).as_posix()
        for batch in file.to_batches(batch_size=BATCH_ROWS):
            best = heapq.nlargest(
                top, [*best, *_nearest(batch, name, query, top)], key=lambda hit: hit.score
            )
    return best


def _nearest(batch: pa.RecordBatch, file: str, query: Vector, top: int) -> Iterator[Hit]:
    flat = batch.column(EMBEDDING_COLUMN).flatten().to_numpy().astype(np.float32)
    vectors = flat.reshape(batch.num_rows, -1 if batch.num_rows else len(query))
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    scores = vectors @ query / lengths
    chosen = np.argsort(-scores, kind="stable")[:top]
    rows = batch.drop_columns([EMBEDDING_COLUMN]).take(pa.array(chosen)).to_pylist()
    for index, row in zip(chosen, rows, strict=True):
        yield Hit(float(scores[index]), file, row)


def show(hits: Sequence[Hit], facts: dict[str, str]) -> None:
    """Print what was found: score, file, the other columns, the beginning of the text or chunk."""
    column = facts.get("omai.text_column")
    chunked = has_chunks({key.encode(): value.encode() for key, value in facts.items()})
    for place, hit in enumerate(hits, start=1):
        others = ", ".join(f"{name}={value}" for name, value in hit.row.items() if name != column)
        print(f"{place:>2}  {hit.score:.3f}  {hit.file}  {textwrap.shorten(others, 100)}")
        if column in hit.row:
            text = str(hit.row[column])
            if chunked:
                text = text[hit.row["chunk_start"] : hit.row["chunk_end"]]
            snippet = textwrap.shorten(text, SNIPPET_CHARACTERS)
            print(textwrap.indent(textwrap.fill(snippet, 90), " " * 11))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got '{text}'")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", metavar="OUT", type=Path, help="what `omai-ray embed` wrote")
    parser.add_argument("query", help="what to look for")
    parser.add_argument(
        "--top", type=_positive, default=5, metavar="N", help="rows to show (default: 5)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML settings, with the catalog"
    )
    parser.add_argument("--model", help="where the model is, unless it is one of the catalog's")
    parser.add_argument("--prompt", metavar="NAME", help="of the model's prompts, that of queries")
    args = parser.parse_args(argv)
    output = args.output.absolute()
    try:
        files, facts = open_corpus(output)
        engine = load_engine(facts, load_settings(args.config), args.model, args.prompt)
    except OMAiError as error:
        sys.stderr.write(f"search: {error.message}\n")
        return 1
    hits = search(files, output, embed_query(engine, args.query), args.top)
    try:
        show(hits, facts)
    except BrokenPipeError:  # whoever reads has seen enough
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
