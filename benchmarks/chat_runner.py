"""One way of generating, in a process of its own: run by chat.py, never by hand.

`chat_runner.py NAME MODEL NEW_TOKENS DEVICE` loads MODEL on `cpu` or `cuda`, generates once to warm
up and prints `ready`. Then each line with a number on stdin continues so many prompts at once,
greedily, by NEW_TOKENS each, and prints how many seconds it took. This engine also answers `ttft`
and `overhead`, a number each: see `first_token_ms` and `overhead_share`.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from chat_process import PROMPT_TOKENS

Prompts = list[list[int]]
Generate = Callable[[Prompts], list[int]]  # returns how many tokens each answer has
VOCABULARY = 49152
ARRIVALS_PER_S = 32
_THREADS = os.cpu_count() or 1
_GPU_CACHE_GIB = 12
PEERS_BIN = Path(__file__).resolve().parent.parent / ".venv-bench/peers/bin"


class Engine:
    """The engine of a replica, and how a caller uses it."""

    def __init__(self, model: str, name: Any, device: str) -> None:
        from omai_ray.catalog import ModelSpec
        from omai_ray.engines.chat.batching_engine import BatchingEngine

        torch.set_num_threads(_THREADS)
        on_gpu = device == "cuda"
        spec = ModelSpec(
            name="m",
            task="chat",
            source=model,
            dtype="bfloat16" if on_gpu else _dtype(),
            engine=name,
            num_gpus=int(on_gpu),
            kv_cache_gib=_GPU_CACHE_GIB if on_gpu else None,
            max_running_requests=256 if on_gpu else 64,
            max_queued_requests=256,
        )
        self._engine = BatchingEngine(spec)
        self._engine.start()
        self._numbers = itertools.count()

    async def one(self, prompt: list[int], new_tokens: int) -> tuple[int, float]:
        """Return how many tokens came, and how many seconds the first took."""
        from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams

        # An account each, so that no prompt of an earlier round is found again.
        name = str(next(self._numbers))
        greedy = SamplingParams(temperature=0)
        request = GenerationRequest(name, prompt, new_tokens, greedy, account=name)
        started, first, count = time.perf_counter(), 0.0, 0
        async for output in self._engine.generate(request):
            first = first or time.perf_counter() - started
            count += len(output.token_ids)
        return count, first

    async def all_of(self, prompts: Prompts, new_tokens: int) -> list[int]:
        """Continue all at once."""
        answers = await asyncio.gather(*(self.one(prompt, new_tokens) for prompt in prompts))
        return [count for count, _ in answers]

    async def first_token_ms(self) -> float:
        """Return the median time to a first token while short prompts arrive, evenly, for 8 s."""
        prompts = random_prompts(8 * ARRIVALS_PER_S, 16)
        tasks = []
        for at, prompt in enumerate(prompts):
            tasks.append(asyncio.create_task(self.one(prompt, 8)))
            await asyncio.sleep((at + 1) / ARRIVALS_PER_S - at / ARRIVALS_PER_S)
        answers = await asyncio.gather(*tasks)
        return statistics.median(first for _, first in answers) * 1000

    def overhead_share(self) -> float:
        """Return what part of the time 64 running sequences spend outside the model's forward."""
        spent: list[float] = []
        run = self._engine._runner.run

        def timed(pieces: Any) -> Any:
            started = time.perf_counter()
            logits = run(pieces)
            spent.append(time.perf_counter() - started)
            return logits

        self._engine._runner.run = timed  # type: ignore[method-assign]
        started = time.perf_counter()
        asyncio.run(self.all_of(random_prompts(64, PROMPT_TOKENS), 32))
        whole = time.perf_counter() - started
        self._engine._runner.run = run  # type: ignore[method-assign]
        return 1 - sum(spent) / whole


def _dtype() -> str:
    from omai_ray.engines.device import has_bfloat16

    return "bfloat16" if has_bfloat16() else "float32"


def omai_ray(model: str, new_tokens: int, device: str, name: str) -> tuple[Engine, Generate]:
    """Generate with the engine of a replica."""
    engine = Engine(model, name, device)
    return engine, lambda prompts: asyncio.run(engine.all_of(prompts, new_tokens))


def _load(model: str, device: str = "cpu") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype="auto").to(device).eval()


def generate_gpu(model: str, new_tokens: int) -> Generate:
    """Generate on a GPU for all prompts as one static batch."""
    return generate(model, new_tokens, "cuda")


def generate(model: str, new_tokens: int, device: str = "cpu") -> Generate:
    """Generate for all prompts as one static batch, as `model.generate` does."""
    loaded = _load(model, device)

    def run(prompts: Prompts) -> list[int]:
        ids = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            out = loaded.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [len(row) - len(prompts[0]) for row in out]

    return run


def transformers_cb(model: str, new_tokens: int) -> Generate:
    """Generate with transformers' continuous batching."""
    from transformers import GenerationConfig

    loaded = _load(model)
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1)
    loaded.generation_config = config

    def run(prompts: Prompts) -> list[int]:
        with torch.no_grad():
            out = loaded.generate_batch(inputs=prompts, generation_config=config)
        return [len(result.generated_tokens) for result in out.values()]

    return run


def transformers_cb_gpu(model: str, new_tokens: int) -> Generate:
    """Generate with transformers' continuous batching on a GPU, which stays warm between runs.

    CUDA graphs and double buffering are as it chooses; its cache leaves room for this engine's.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    loaded = _load(model, "cuda")
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1)
    loaded.generation_config = config
    batching = ContinuousBatchingConfig(max_memory_percent=0.5)

    def run(prompts: Prompts) -> list[int]:
        with torch.no_grad():
            out = loaded.generate_batch(
                inputs=prompts,
                generation_config=config,
                continuous_batching_config=batching,
                persistent_manager=True,
            )
        return [len(result.generated_tokens) for result in out.values()]

    return run


def llama_cpp(model: str, new_tokens: int) -> Generate:
    """Generate with llama.cpp's own batches: all prompts, then a token of each at a time."""
    import llama_cpp as lib
    import numpy as np

    most, room = 32, 512
    lib.llama_backend_init()
    lib.llama_log_set(_IGNORE, ctypes.c_void_p(0))
    loaded = lib.llama_model_load_from_file(
        f"{model}/model.gguf".encode(), lib.llama_model_default_params()
    )
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max = most * room, most
    params.n_batch = most * PROMPT_TOKENS
    params.n_threads = params.n_threads_batch = _THREADS
    context = lib.llama_init_from_model(loaded, params)
    batch = lib.llama_batch_init(most * PROMPT_TOKENS, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (token, position, sequence, whether to choose the next); return those chosen."""
        for at, (token, position, sequence, last) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, last
        batch.n_tokens = len(rows)
        if lib.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not decode")
        found = (lib.llama_get_logits_ith(context, at) for at, row in enumerate(rows) if row[3])
        return [int(np.ctypeslib.as_array(row, (VOCABULARY,)).argmax()) for row in found]

    def run(prompts: Prompts) -> list[int]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        last = len(prompts[0]) - 1
        chosen = decode(
            [(t, at, s, at == last) for s, p in enumerate(prompts) for at, t in enumerate(p)]
        )
        for step in range(1, new_tokens):
            chosen = decode([(t, last + step, s, True) for s, t in enumerate(chosen)])
        return [new_tokens] * len(chosen)

    return run


# Kept, because llama.cpp calls it for as long as the process lives.
_IGNORE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def transformers_serve(model: str, new_tokens: int) -> Generate:
    """Generate over HTTP with `transformers serve` and its continuous batching."""
    program = str(PEERS_BIN / "transformers")
    command = [program, "serve", model, "--continuous-batching", "--device", "cpu"]
    start = lambda port: [*command, "--port", str(port)]  # noqa: E731
    return _over_http(model, new_tokens, start, "/health", model, "")


def omai_ray_serve(model: str, new_tokens: int) -> Generate:
    """Generate over HTTP with this platform: Ray Serve, keys, quota and ledger included."""
    folder = tempfile.mkdtemp()
    spec = {
        "name": "m",
        "task": "chat",
        "source": model,
        "dtype": _dtype(),
        "num_cpus": _THREADS,
        "max_running_requests": 64,
    }
    tiers = {"free": {"requests_per_minute": None, "tokens_per_minute": None}}
    config = Path(folder, "config.json")
    config.write_text(json.dumps({"models": [spec], "tiers": tiers, "state_dir": folder}))
    program = str(Path(sys.executable).with_name("omai-ray"))
    shown = subprocess.run(
        [program, "keys", "create", "--tier", "free", "--quiet", "--config", str(config)],
        check=True,
        capture_output=True,
        text=True,
    )
    command = [program, "serve", "--config", str(config), "--no-dashboard", "--port"]
    key = shown.stdout.strip()
    start = lambda port: [*command, str(port)]  # noqa: E731
    return _over_http(model, new_tokens, start, "/readyz", "m", key)


def _over_http(
    model: str, new_tokens: int, start: Callable[[int], list[str]], ready: str, name: str, key: str
) -> Generate:
    import httpx
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def ask(client: Any, prompt: list[int]) -> int:
        content = tokenizer.decode([token % 256 + 200 for token in prompt])
        body = {
            "model": name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": new_tokens,
            "temperature": 0,
        }
        answer = await client.post(f"{url}/v1/chat/completions", json=body)
        if answer.status_code != 200:
            raise SystemExit(f"{name}: {answer.status_code} {answer.text[:300]}")
        return int(answer.json()["usage"]["completion_tokens"])

    async def all_of(prompts: Prompts) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(headers=headers, timeout=600, limits=limits) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

    _SERVERS.append(subprocess.Popen(start(port), stdout=sys.stderr, start_new_session=True))
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}{ready}", timeout=5).status_code == 200:
                return lambda prompts: asyncio.run(all_of(prompts))
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"{name}: the server does not answer")


_SERVERS: list[subprocess.Popen[bytes]] = []


@contextmanager
def _servers_end() -> Iterator[None]:
    try:
        yield
    finally:
        for server in _SERVERS:
            os.killpg(server.pid, signal.SIGTERM)
        for server in _SERVERS:
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PEERS: dict[str, Callable[[str, int], Generate]] = {
    "generate": generate,
    "static_batch": generate,
    "transformers_cb": transformers_cb,
    "transformers_cb_gpu": transformers_cb_gpu,
    "generate_gpu": generate_gpu,
    "llama_cpp": llama_cpp,
    "transformers_serve": transformers_serve,
    "omai_ray_serve": omai_ray_serve,
}
ENGINES = {"omai_ray": "transformers", "omai_ray_llama_cpp": "llama-cpp"}


def random_prompts(count: int, tokens: int) -> Prompts:
    """Return the same prompts every time."""
    generator = torch.Generator().manual_seed(0)
    found: Prompts = torch.randint(0, VOCABULARY, (count, tokens), generator=generator).tolist()
    return found


def main() -> None:
    """Run as a program."""
    name, model, new_tokens, device = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not be taken for ours
    engine: Any = None
    with _servers_end():
        if name in ENGINES:
            engine, run = omai_ray(model, new_tokens, device, ENGINES[name])
        else:
            run = PEERS[name](model, new_tokens)
        prompts = random_prompts(256, PROMPT_TOKENS)
        run(prompts[: 256 if device == "cuda" else 2])
        print("ready", file=out, flush=True)
        for line in sys.stdin:
            print(
                _answer(name, engine, run, prompts, new_tokens, line.strip()), file=out, flush=True
            )


def _answer(
    name: str, engine: Any, run: Generate, prompts: Prompts, new_tokens: int, line: str
) -> float:
    if line == "ttft":
        return float(asyncio.run(engine.first_token_ms()))
    if line == "overhead":
        return float(engine.overhead_share())
    count = int(line)
    started = time.perf_counter()
    answers = run(prompts[:count])
    seconds = time.perf_counter() - started
    if answers != [new_tokens] * count:
        raise SystemExit(f"{name} did not generate {new_tokens} tokens for each prompt: {answers}")
    return seconds


if __name__ == "__main__":
    main()
