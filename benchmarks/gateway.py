"""What our ingress costs, beside a bare Serve application and LiteLLM's proxy.

`python benchmarks/gateway.py [--quick] [--proxy haproxy|python]`: engines that answer at once stand
behind our ingress (keys, limits by the actor, ledger on SQLite, validation), behind a bare FastAPI
ingress on the same Serve, and behind LiteLLM's proxy with its master key (`make bench-setup`); all
are loaded in turns from this process, which is measured against a plain uvicorn as well. Without
`--proxy` both of Serve's proxies are measured, with Ray's settings for throughput for HAProxy and
without any for the Python one. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway_load import Call, Load, put_load  # noqa: E402
from gateway_upstream import WORDS  # noqa: E402

LITELLM = ROOT / ".venv-bench" / "litellm" / "bin" / "litellm"
MASTER_KEY = "sk-master-0123456789"
CHAT = {
    "model": "omai-gpt-4",
    "messages": [{"role": "user", "content": "Hello, how are you?"}],
    "max_tokens": 16,
}
STREAM = CHAT | {"stream": True, "max_tokens": WORDS}
EMBEDDING = {
    "model": "text-embedding-ada-002",
    "input": "The quick brown fox jumps over the lazy dog",
    "encoding_format": "float",
}
CALLS = {
    "chat": Call("/v1/chat/completions", CHAT),
    "stream": Call("/v1/chat/completions", STREAM, events=WORDS),
    "embedding": Call("/v1/embeddings", EMBEDDING),
}
LOADS = [(name, clients) for name in CALLS for clients in (1, 32)]
READY_S = 120.0
Loads = dict[tuple[str, str, int], list[Load]]


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], url: str, directory: Path, **environment: str) -> Iterator[str]:
    """Run a server until it is no longer needed; give its address once it answers."""
    with (directory / f"{Path(command[0]).name}.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=directory, env=os.environ | environment, stdout=log, stderr=log
        )
        try:
            wait_for(f"{url}/health/liveliness")
            yield url
        finally:
            server.terminate()
            server.wait()


def wait_for(url: str) -> None:
    """Return once something answers, whatever it says. Raises OSError where nothing does."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextlib.contextmanager
def uvicorn(directory: Path) -> Iterator[str]:
    """Serve the stub's answers by a plain uvicorn."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "gateway_upstream:app", "--port", str(port)]
    command += ["--app-dir", str(ROOT / "benchmarks"), "--log-level", "warning"]
    with running(command, f"http://127.0.0.1:{port}", directory) as url:
        yield url


@contextlib.contextmanager
def litellm(directory: Path, upstream: str) -> Iterator[str]:
    """Run LiteLLM's proxy, one worker as our one ingress replica, before an upstream."""
    models = [
        {
            "model_name": body["model"],
            "litellm_params": {
                "model": f"openai/{body['model']}",
                "api_base": f"{upstream}/v1",
                "api_key": "none",
            },
        }
        for body in (CHAT, EMBEDDING)
    ]
    config = directory / "litellm.json"  # which is YAML as well
    config.write_text(
        json.dumps({"model_list": models, "general_settings": {"master_key": MASTER_KEY}})
    )
    port = free_port()
    command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(command, f"http://127.0.0.1:{port}", directory, **quiet) as url:
        yield url


@contextlib.contextmanager
def served(directory: Path, proxy: str) -> Iterator[dict[str, tuple[str, str]]]:
    """Serve our ingress and the bare one on a Ray of the benchmark's own; give address and key."""
    from deployments.platform import haproxy_environment, proxy_environment
    from omai_ray.settings import Settings, Tier

    # Limits which are never reached, so that they are checked.
    tiers = {"bench": Tier(requests_per_minute=10**9, tokens_per_minute=10**12)}
    settings = Settings(
        state_dir=directory / "state", tiers=tiers, log_file=directory / "omai.log", proxy=proxy
    )
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= proxy_environment(settings)
    if proxy == "haproxy":
        os.environ |= haproxy_environment(directory, settings.drain_s)
    import ray
    from gateway_apps import bare, ours
    from ray import serve
    from ray.serve.schema import LoggingConfig

    key = asyncio.run(make_key(settings))
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    port = free_port()
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": port},
            logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
        )
        serve.run(bare(settings), name="bare", route_prefix="/bare")
        serve.run(ours(settings), name="ours", route_prefix="/")
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/readyz")
        yield {"ours": (url, key), "bare": (f"{url}/bare", "none")}
        serve.shutdown()
    finally:
        ray.shutdown()


async def make_key(settings: Any) -> str:
    """Return a key of an account in the benchmark's tier."""
    from omai_ray.identity.administration import Administration
    from omai_ray.identity.registry import Registry

    registry = await Registry.open(settings)
    try:
        administration = Administration(registry)
        await administration.accounts.create("bench", "bench")
        _, key = await administration.keys.create("bench")
        return key
    finally:
        await registry.close()


def measure(proxy: str, rounds: int, seconds: float) -> Loads:
    """Return what every peer made of every load, in turns."""
    loads: Loads = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(uvicorn(directory))
        peers = stack.enter_context(served(directory, proxy))
        peers["uvicorn"] = upstream, "none"
        if LITELLM.exists():
            peers["litellm"] = stack.enter_context(litellm(directory, upstream)), MASTER_KEY
        for number in range(-1, rounds):
            for name, clients in LOADS:
                for peer, (url, key) in peers.items():
                    call = replace(CALLS[name], url=url + CALLS[name].url, key=key)
                    load = put_load(call, clients, seconds if number >= 0 else 1.0)
                    if number >= 0:  # the first round only warms up
                        loads.setdefault((peer, name, clients), []).append(load)
    return loads


def summarise(loads: Loads) -> dict[str, float]:
    """Print a table; return the named figures."""
    print(f"{'':10} " + " ".join(f"{name:>9} x{clients:<4}" for name, clients in LOADS))
    peers = list(dict.fromkeys(peer for peer, _, _ in loads))
    for peer in peers:
        for what in ("per_s", "p50_ms", "client_cpu_ms"):
            values = [median(loads, peer, load, what) for load in LOADS]
            print(f"{peer:10} " + " ".join(f"{value:15.2f}" for value in values) + f"  {what}")

    def ratio(load: tuple[str, int], peer: str) -> float:
        pairs = zip(loads[("ours", *load)], loads[(peer, *load)], strict=True)
        return statistics.median(own.per_s / other.per_s for own, other in pairs)

    pairs = zip(loads[("ours", "chat", 1)], loads[("bare", "chat", 1)], strict=True)
    figures = {
        "chat_per_s": median(loads, "ours", ("chat", 32), "per_s"),
        "chat_p50_ms": median(loads, "ours", ("chat", 1), "p50_ms"),
        "chunks_per_s": median(loads, "ours", ("stream", 32), "per_s") * WORDS,
        "embeddings_per_s": median(loads, "ours", ("embedding", 32), "per_s"),
        "ceiling_per_s": median(loads, "uvicorn", ("chat", 32), "per_s"),
        "ceiling_chunks_per_s": median(loads, "uvicorn", ("stream", 32), "per_s") * WORDS,
        "vs_bare_serve": ratio(("chat", 32), "bare"),
        "stream_vs_bare": ratio(("stream", 32), "bare"),
        "embeddings_vs_bare": ratio(("embedding", 32), "bare"),
        "overhead_p50_ms": statistics.median(own.p50_ms - other.p50_ms for own, other in pairs),
    }
    if "litellm" in peers:
        figures |= {
            "vs_litellm": ratio(("chat", 32), "litellm"),
            "stream_vs_litellm": ratio(("stream", 32), "litellm"),
            "embeddings_vs_litellm": ratio(("embedding", 32), "litellm"),
        }
    return figures


def median(loads: Loads, peer: str, load: tuple[str, int], what: str) -> float:
    """Return a figure of a peer's under a load, the median of the rounds."""
    return statistics.median(getattr(each, what) for each in loads[(peer, *load)])


def run_apart(proxy: str, quick: bool) -> dict[str, Any]:
    """Measure with one of Serve's proxies in a process of its own: Ray reads its settings once."""
    command = [sys.executable, __file__, "--proxy", proxy, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"--- {proxy}\n{done.stdout}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure, print a table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four rounds of one second each")
    parser.add_argument("--proxy", choices=("haproxy", "python"), help="measure one of them")
    args = parser.parse_args()
    if args.proxy is None:
        figures = run_apart("haproxy", args.quick)
        by_python = run_apart("python", args.quick)
        print(json.dumps(figures | {f"python_proxy_{k}": v for k, v in by_python.items()}))
        return
    # Short rounds and many: what else the machine does then meets all alike.
    rounds, seconds = (4, 1.0) if args.quick else (12, 1.5)
    figures = summarise(measure(args.proxy, rounds, seconds))
    import ray

    facts = {
        "cpus": os.cpu_count(),
        "cpu": platform.machine(),
        "python": platform.python_version(),
        "ray": ray.__version__,
    }
    print(json.dumps(facts | {name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
