"""A cluster of three Ray nodes on this machine, one of which is killed under load.

`python tests/ray/multi_node.py CHECKPOINT STATE_DIR` writes STATE_DIR/report.json. It is a program
of its own because a process is a driver of one cluster only. Each node's proxy has its own port.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray._private import state
from ray.cluster_utils import Cluster
from ray.serve.config import ProxyLocation

from deployments.app import build
from deployments.platform import proxy_environment
from omai_ray.catalog import ModelSpec, Replicas
from omai_ray.settings import IngressSettings, Settings
from tests import patience
from tests.programs import free_port, kill_all
from tests.ray.conftest import Served

# As long as three nodes on a busy machine may take.
eventually = partial(patience.eventually, patience_s=120.0)
REPORT = "report.json"
MODEL = "model-chat"
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}
ENDLESS = {"logit_bias": {"70": 100}}
# Ray takes a node for dead after these; by default that takes more than 15 s.
DETECTION = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
    "agent_register_timeout_ms": 100_000,  # a node that starts on a busy machine takes its time
}


def nodes_of(deployment: str) -> list[str]:
    """Return the nodes of a deployment's replicas, one for each."""
    name = f"#{deployment}#"
    actors = [a for a in state.actors().values() if name in (a["Name"] or "")]
    return sorted(a["Address"]["NodeID"] for a in actors if a["State"] == "ALIVE")


class Load:
    """Clients at some addresses; each request's begin, end, and what went wrong, if anything."""

    def __init__(self, urls: list[str], key: str) -> None:
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {key}"}
        self._stop = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self._threads: list[threading.Thread] = []

    def ask_again_and_again(self) -> None:
        """Start two clients for each address, one of which streams."""
        for url in self._urls:
            for stream in (False, True):
                self._start(url, 16, stream, once=False)

    def ask_for_long(self, count: int) -> None:
        """Start so many streams that take long."""
        for number in range(count):
            self._start(self._urls[number % len(self._urls)], 1500, True, once=True)

    def end(self) -> None:
        """Stop, and wait for all."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _start(self, url: str, tokens: int, stream: bool, *, once: bool) -> None:
        thread = threading.Thread(target=self._ask, args=(url, tokens, stream, once))
        self._threads.append(thread)
        thread.start()

    def _ask(self, url: str, tokens: int, stream: bool, once: bool) -> None:
        body = CHAT | ENDLESS | {"max_tokens": tokens, "stream": stream}
        with httpx.Client(base_url=url, headers=self._headers, timeout=60) as client:
            while not self._stop.is_set():
                begun = time.monotonic()
                try:
                    wrong = _wrong(client.post("/v1/chat/completions", json=body), stream)
                except httpx.HTTPError as error:
                    wrong = repr(error)
                self.requests.append({"begun": begun, "ended": time.monotonic(), "wrong": wrong})
                if once:
                    return


def _wrong(answer: httpx.Response, stream: bool) -> str | None:
    """Return None for a whole answer, "enveloped" for an error as OpenAI's, else what it is."""
    last = answer.text.strip().split("\n\n")[-1].removeprefix("data: ")
    if answer.status_code == 200 and (not stream or last == "[DONE]"):
        return None
    try:
        error = json.loads(last)["error"]
    except (ValueError, KeyError):
        error = {}
    if error.keys() == {"message", "type", "param", "code"} and error["type"] == "server_error":
        return "enveloped"
    return f"{answer.status_code}: {answer.text[-300:]}"


def main(checkpoint: str, state_dir: str) -> None:
    """Serve on three nodes, kill one, tell what came of it."""
    ports = [free_port() for _ in range(3)]
    settings = Settings(
        port=ports[0],
        state_dir=Path(state_dir),
        log_file=Path(state_dir) / "omai.log",
        ingress=IngressSettings(replicas=3, num_cpus=0.4),
        models=(
            ModelSpec(  # so large that a node has room for one, beside two ingress replicas
                name="chat",
                task="chat",
                source=checkpoint,
                num_cpus=1.2,
                replicas=Replicas(min=2, max=2),
            ),
        ),
    )
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ |= proxy_environment(settings)
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": DETECTION}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    workers = [
        cluster.add_node(
            num_cpus=2, env_vars=os.environ | {"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(port)}
        )
        for port in ports[1:]
    ]
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(
            proxy_location=ProxyLocation.EveryNode,
            http_options={"host": "127.0.0.1", "port": ports[0]},
        )
        serve.run(build(settings), name="omai")
        report = _kill_a_node(cluster, workers, settings, ports)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
    (Path(state_dir) / REPORT).write_text(json.dumps(report), encoding="utf-8")


def _kill_a_node(
    cluster: Cluster, workers: list[Any], settings: Settings, ports: list[int]
) -> dict[str, Any]:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for url in urls:
        eventually(lambda url=url: _is_ready(url))  # type: ignore[misc]
    account, key = Served(urls[0], settings).create_key()
    before = {"ingress": nodes_of("ingress"), "chat": nodes_of(MODEL)}
    victim = next(node for node in workers if node.node_id in before["chat"])
    survivors = [urls[0], urls[2 if victim is workers[0] else 1]]

    load = Load(survivors, key)
    try:
        load.ask_again_and_again()
        load.ask_for_long(6)
        eventually(lambda: len(load.requests) >= 8)
        kill_all(victim.all_processes["raylet"][0].process.pid)
        killed = time.monotonic()
        cluster.remove_node(victim, allow_graceful=False)
        eventually(lambda: len(nodes_of(MODEL)) == 2 and victim.node_id not in nodes_of(MODEL))
        recovered = time.monotonic()
        eventually(lambda: sum(r["begun"] > recovered for r in load.requests) >= 8)
    finally:
        load.end()
    failed = [request for request in load.requests if request["wrong"]]
    return {
        "nodes": 3,
        "before": before,
        "victim": victim.node_id,
        "after": {"ingress": nodes_of("ingress"), "chat": nodes_of(MODEL)},
        "sent": len(load.requests),
        "recorded": Served(urls[0], settings).requests_recorded(account),
        "in_flight": sum(r["begun"] <= killed <= r["ended"] for r in load.requests),
        "failed_in_flight": sum(r["begun"] <= killed for r in failed),
        "failed_later": [r["begun"] - killed for r in failed if r["begun"] > killed],
        "not_enveloped": [r["wrong"] for r in failed if r["wrong"] != "enveloped"],
        "recovery_s": recovered - killed,
    }


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main(*sys.argv[1:])
