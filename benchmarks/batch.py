"""What the batch API takes, beside the bulk pipeline and the chat engine that are behind it.

`python benchmarks/batch.py [--quick] [--only PART]`: the built-in models behind the whole
platform, asked by openai's client. Parts:

- `embeddings`: a text a line, and the same texts through `pipelines.embed_corpus`
- `chat`: short prompts, 64 tokens each, and the same through the engine alone, as many at once as
  it runs
- `online`: the time to the first token of requests at random moments, alone and while a batch is
  answered by the same replica, in turns
- `upload`: what the ingress replica and the proxy gain in resident memory while a file comes in,
  each of its own, and the pages of Ray's object store that they share, which are counted once

Batches run on both backends: `shared` asks one replica that has all CPUs, `own` has an engine of
one CPU in each of as many workers. Each batch is run twice: `_first` is the one that starts its
workers, the other one finds them there. Both count from in_progress to completed; of that,
`_start_s` is what passes before the first line's start, which the bulk pipeline's and the engine's
own figures leave out. A ratio is of the better backend. With --quick embeddings are a single unit,
which one worker does.

Ends with one line of JSON. Other work on the machine makes the figures useless.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from batch_load import ONLINE_SHARE, Done, Server, first_tokens  # noqa: E402
from batch_memory import Growth  # noqa: E402
from bulk import run_ours  # noqa: E402
from wake import ENVIRONMENT, running  # noqa: E402

from examples.sample_corpus import passages, write_corpus  # noqa: E402
from omai_ray.catalog import ModelSpec, locate  # noqa: E402

PARTS = ("embeddings", "chat", "online", "upload")
CPUS = len(os.sched_getaffinity(0))
CHAT, EMBEDDING = "omai-gpt-4", "text-embedding-ada-002"
BACKENDS = ("shared", "own")
TURNS = ("_first", "")
EMBEDDING_RATE, CHAT_RATE = "embeddings_{}_lines_per_s", "chat_{}_tokens_per_s"
SOURCES = {CHAT: "builtin:omai-chat-small", EMBEDDING: "builtin:all-minilm-l6-v2"}
NEW_TOKENS, ONLINE_TOKENS = 64, 32
KV_CACHE_GIB = 1.0
PROMPT, ONLINE_PROMPT = 60, 400  # characters
WARM = 5  # requests online, by which the others' pace is set
BESIDE = 10_000  # chats of a batch that is to last
UPLOAD_TITLES = {"ingress": ":omai:ingress", "proxy": "ray::ProxyActor"}
Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How much is done. rounds, requests: online, alone and beside a batch each."""

    embeddings: int
    chats: int
    rounds: int
    requests: int
    megabytes: int


FULL = Sizes(embeddings=10_000, chats=200, rounds=3, requests=40, megabytes=200)
QUICK = Sizes(embeddings=1_000, chats=40, rounds=1, requests=5, megabytes=50)


def spec_of(model: str, backend: str) -> ModelSpec:
    """Return a model's entry; those for engines of a batch's own have no replica."""
    own = backend == "own"
    values: dict[str, Any] = {"replicas": {"min": 0}} if own else {}
    if model == CHAT:
        values["kv_cache_gib"] = KV_CACHE_GIB
    else:
        values["truncate"] = True  # as the bulk pipeline does
    return ModelSpec(
        name=f"{model}-own" if own else model,
        task="chat" if model == CHAT else "embedding",
        source=SOURCES[model],
        num_cpus=1 if own else CPUS,
        **values,
    )


@contextmanager
def served(folder: Path, names: list[str]) -> Iterator[Server]:
    """Run the platform with some models."""
    models = [spec_of(name, backend) for name in names for backend in BACKENDS]
    settings = {
        "models": [model.model_dump(mode="json", exclude_unset=True) for model in models],
        "batches": {
            "workers": CPUS,
            "backends": {spec_of(name, "own").name: "own" for name in names},
        },
    }
    config, state = folder / "omai.yaml", folder / "state"
    config.write_text(json.dumps(settings))  # which is YAML as well
    command = [str(Path(sys.executable).with_name("omai-ray"))]
    where = ["--state-dir", str(state)]
    serving = ["serve", "--config", str(config), *where, "--port", "0", "--no-dashboard"]
    with running([*command, *serving], folder) as address:
        making = [*command, "keys", "create", "--tier", "enterprise", "--quiet", *where]
        key = subprocess.check_output(making, env=ENVIRONMENT, text=True).strip()
        yield Server(address, key, state)


def chat_body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    """Return a request that is answered by exactly so many tokens."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": {stop_token_id(): -100},
    }


@functools.cache
def stop_token_id() -> str:
    """Return the id of the token that ends an answer."""
    directory = locate(spec_of(CHAT, "shared"))
    return str(json.loads((directory / "generation_config.json").read_text())["eos_token_id"])


def embeddings(server: Server, texts: list[str], bulk_rows_per_s: float) -> Figures:
    """Return what batches of a text a line take, beside the bulk pipeline."""
    found: Figures = {}
    for backend, turn in itertools.product(BACKENDS, TURNS):
        model = spec_of(EMBEDDING, backend).name
        done = server.run("/v1/embeddings", [{"model": model, "input": text} for text in texts])
        found |= rates(EMBEDDING_RATE.format(backend) + turn, done, done.lines)
    return found | best(found, EMBEDDING_RATE, bulk_rows_per_s, "embeddings_vs_bulk")


def chat(server: Server, prompts: list[str], engine_tokens_per_s: float) -> Figures:
    """Return what batches of chats take, beside the engine alone."""
    found: Figures = {}
    for backend, turn in itertools.product(BACKENDS, TURNS):
        model = spec_of(CHAT, backend).name
        bodies = [chat_body(model, prompt, NEW_TOKENS) for prompt in prompts]
        done = server.run("/v1/chat/completions", bodies)
        found |= rates(CHAT_RATE.format(backend) + turn, done, done.tokens)
    return found | best(found, CHAT_RATE, engine_tokens_per_s, "chat_vs_engine")


def rates(name: str, done: Done, amount: int) -> Figures:
    """Return how much of something a batch did a second, and how long its start took of that."""
    return shown({name: amount / done.whole_s, f"{name}_start_s": done.start_s})


def best(found: Figures, rate: str, peer: float, ratio: str) -> Figures:
    """Return the better backend's rates as ratios to a peer's. rate: with {} for the backend."""
    return shown(
        {
            f"{ratio}{turn}": max(found[rate.format(backend) + turn] for backend in BACKENDS) / peer
            for turn in TURNS
        }
    )


def shown(figures: Figures) -> Figures:
    """Print figures as rows of the table, and return them."""
    for name, value in figures.items():
        print(f"{name:48} {value:10.2f}", flush=True)
    return figures


def run_engine(prompts: list[str]) -> float:
    """Return the chat engine's tokens a second, alone in a process of its own."""
    model = spec_of(CHAT, "shared").model_dump(mode="json")
    given = {"model": model, "prompts": prompts, "new_tokens": NEW_TOKENS}
    command = [sys.executable, str(Path(__file__).with_name("batch_engine.py"))]
    said = json.loads(
        subprocess.check_output(command, input=json.dumps(given), env=ENVIRONMENT, text=True)
    )
    return float(said["tokens"] / said["seconds"])


def online(server: Server, texts: Sequence[str], sizes: Sizes) -> Figures:
    """Return when first tokens come, alone and while a batch is answered."""
    numbers = itertools.count()  # before each prompt, so that none begins as one computed before

    def ask(count: int, gap_s: float) -> tuple[list[float], list[float]]:
        prompts = [
            f"{number}: {texts[number % len(texts)][:ONLINE_PROMPT]}"
            for number in itertools.islice(numbers, count)
        ]
        return first_tokens(
            server, [chat_body(CHAT, prompt, ONLINE_TOKENS) for prompt in prompts], gap_s
        )

    _, lasts = ask(WARM, 1.0)
    gap_s = statistics.median(lasts) / ONLINE_SHARE
    found = shown({"online_requests_per_s": 1 / gap_s})
    batch = [
        chat_body(CHAT, f"Line {number}: {texts[number % len(texts)][:PROMPT]}", NEW_TOKENS)
        for number in range(BESIDE)
    ]
    times: dict[str, list[float]] = {"alone": [], "beside": []}
    for _ in range(sizes.rounds):
        times["alone"] += ask(sizes.requests, gap_s)[0]
        with server.beside("/v1/chat/completions", batch):
            times["beside"] += ask(sizes.requests, gap_s)[0]
    firsts: Figures = {}
    for name, seconds in times.items():
        firsts[f"online_ttft_p50_ms_{name}"] = 1000 * statistics.median(seconds)
        firsts[f"online_ttft_p95_ms_{name}"] = 1000 * statistics.quantiles(seconds, n=20)[-1]
    ratio = firsts["online_ttft_p50_ms_beside"] / firsts["online_ttft_p50_ms_alone"]
    return found | shown(firsts | {"online_ttft_ratio": ratio})


def upload(server: Server, folder: Path, megabytes: int) -> Figures:
    """Return what processes gain in memory while a file comes in, a small one having come."""
    path = folder / "upload.jsonl"
    line = b'{"text": "%s"}\n' % (b"a" * 987)  # a thousand bytes

    def send(lines: int) -> float:
        with path.open("wb") as file:
            for _ in range(lines):
                file.write(line)
        started = time.perf_counter()
        with path.open("rb") as file:
            assert server.client.files.create(file=file, purpose="batch").bytes == lines * len(line)
        return time.perf_counter() - started

    send(1000)
    with Growth(UPLOAD_TITLES) as growth:
        seconds = send(1000 * megabytes)
    found = {f"upload_{name}_rss_mib": mib for name, mib in growth.mib.items()}
    found["upload_object_store_rss_mib"] = growth.shared_mib
    found |= {"upload_rss_mib": sum(found.values()), "upload_mb_per_s": megabytes / seconds}
    return shown(found)


def measure(parts: list[str], sizes: Sizes, folder: Path) -> Figures:
    """Return the figures of some parts."""
    rows = passages(sizes.embeddings)
    texts = [row["text"] for row in rows]
    prompts = [text[:PROMPT] for text in texts[: sizes.chats]]
    figures: Figures = {}
    # What batches are compared with, while no platform runs.
    if "embeddings" in parts:
        write_corpus(folder / "corpus", rows)
        report = run_ours(folder / "corpus", folder / "bulk")
        figures |= shown({f"bulk_{name}": report[name] for name in ("rows_per_s", "startup_s")})
    if "chat" in parts:
        figures |= shown({"engine_tokens_per_s": run_engine(prompts)})
    needed = [CHAT] if "embeddings" not in parts else list(SOURCES)
    with served(folder, needed) as server:
        if "embeddings" in parts:
            figures |= embeddings(server, texts, figures["bulk_rows_per_s"])
        if "chat" in parts:
            figures |= chat(server, prompts, figures["engine_tokens_per_s"])
        if "online" in parts:
            figures |= online(server, texts, sizes)
        if "upload" in parts:
            figures |= upload(server, folder, sizes.megabytes)
    return figures


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth or so of everything")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.only or list(PARTS), sizes, Path(folder))
    about: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cpus": CPUS}
    about |= {name: version(name) for name in ("ray", "torch", "transformers", "openai")}
    for part, rate in (("embeddings", EMBEDDING_RATE), ("chat", CHAT_RATE)):
        found = {backend: figures.get(rate.format(backend), 0.0) for backend in BACKENDS}
        if any(found.values()):
            about[f"{part}_backend"] = max(BACKENDS, key=found.__getitem__)
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(about | asdict(sizes) | rounded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
