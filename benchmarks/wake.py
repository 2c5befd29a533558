"""How long the first request waits for a chat model that sleeps.

`python benchmarks/wake.py [--quick]`: the built-in chat model with `replicas: {min: 0}` behind the
whole platform, and the same checkpoint in a bare Serve deployment that calls transformers'
`generate`, scaled from zero as well. A request comes when the replica has gone; its time runs to
the whole answer of four tokens. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway import free_port  # noqa: E402

from omai_ray.catalog import ModelSpec, locate  # noqa: E402

SOURCE = "builtin:omai-chat-small"
CHAT = {
    "model": "omai-gpt-4",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
}
CATALOG = {
    "models": [
        {
            "name": "omai-gpt-4",
            "task": "chat",
            "source": SOURCE,
            "num_cpus": 0.5,
            "replicas": {"min": 0, "max": 1, "scale_to_zero_s": 2},
        }
    ]
}
SLEEP_S = 15.0  # a replica has gone by then
LEAST_WAKE_S = 1.0  # what is awake answers sooner
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[str]:
    """Run a server; give the last word of the first line that says `ready`."""
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert server.stdout is not None
            yield next(line.split()[-1] for line in server.stdout if "ready" in line)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


def post(url: str, body: dict[str, Any], key: str) -> float:
    """Return the seconds that an answer took."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
    return time.perf_counter() - started


def wake_ours(folder: Path, rounds: int) -> list[float]:
    """Return the seconds of each wake of the platform's model."""
    config = folder / "omai.yaml"
    config.write_text(json.dumps(CATALOG))  # which is YAML as well
    command = [str(Path(sys.executable).with_name("omai-ray"))]
    state = ["--state-dir", str(folder / "state")]
    serving = [*command, "serve", "--config", str(config), *state, "--port", "0"]
    with running(serving, folder) as address:
        making = [*command, "keys", "create", "--tier", "pro", "--quiet", *state]
        key = subprocess.check_output(making, env=ENVIRONMENT, text=True).strip()
        return [_after_sleep(f"{address}/v1/chat/completions", CHAT, key) for _ in range(rounds)]


def wake_bare(folder: Path, rounds: int) -> list[float]:
    """Return the seconds of each wake of the bare deployment."""
    with running([sys.executable, __file__, "--bare"], folder) as address:
        return [_after_sleep(address, {}, "none") for _ in range(rounds)]


def _after_sleep(url: str, body: dict[str, Any], key: str) -> float:
    """Return a request's seconds; the one before is forgotten, and its replica gone."""
    time.sleep(SLEEP_S)
    seconds = post(url, body, key)
    if seconds < LEAST_WAKE_S:
        raise SystemExit(f"{url} was awake after {SLEEP_S:.0f} s: it answered in {seconds:.2f} s")
    return seconds


def serve_bare() -> None:
    """Serve the checkpoint by transformers in a deployment that sleeps, until a signal."""
    import ray
    from ray import serve

    directory = str(locate(ModelSpec(name="m", task="chat", source=SOURCE)))

    @serve.deployment(
        autoscaling_config={
            "min_replicas": 0,
            "max_replicas": 1,
            "metrics_interval_s": 1,
            "look_back_period_s": 2,
            "downscale_delay_s": 2,
        },
        ray_actor_options={"num_cpus": 0.5},
    )
    class Bare:
        """A model as a first script serves it."""

        def __init__(self) -> None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(directory)
            self._model = AutoModelForCausalLM.from_pretrained(directory)

        async def __call__(self, _: Any) -> str:
            inputs = self._tokenizer("Hello", return_tensors="pt")
            tokens = self._model.generate(**inputs, max_new_tokens=4)
            return str(self._tokenizer.decode(tokens[0]))

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Bare.bind())  # type: ignore[attr-defined]
    print(f"ready http://127.0.0.1:{port}", flush=True)
    signal.sigwait({signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two wakes each, not six")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        serve_bare()
        return 0
    rounds = 2 if options.quick else 6
    figures: dict[str, Any] = {"cpus": os.cpu_count(), "cpu": platform.machine()}
    figures |= {name: version(name) for name in ("ray", "torch", "transformers")}
    for name, wake in (("omai_ray", wake_ours), ("bare_serve", wake_bare)):
        with tempfile.TemporaryDirectory() as folder:
            seconds = wake(Path(folder), rounds)
        print(f"{name:12} {[round(each, 2) for each in seconds]} s")
        figures[f"{name}_wake_s"] = round(statistics.median(seconds), 2)
        figures[f"{name}_slowest_wake_s"] = round(max(seconds), 2)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
