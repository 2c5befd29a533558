"""`omai-ray serve` as these experiments run it: two replicas of what may die, all observable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import yaml

from omai_ray.settings import Settings, load_settings
from tests import patience
from tests.programs import descendants
from tests.ray.conftest import Served
from tests.ray.test_command import address, serving

CHAT, EMBEDDING = "omai-gpt-4", "text-embedding-ada-002"
NARROW, PATIENT = "narrow", "patient"  # what runs a few requests: and queues a few, or many
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"logit_bias": {"70": 100}}
# What the processes are called, once Ray has named them.
CONTROLLER = r"^ray::ServeController"
INGRESS = r"^ray::ServeReplica:omai:ingress"
LIMITER = r"^ray::LimiterActor"
PROXY = r"^ray::ProxyActor"
CHAT_REPLICA = rf"^ray::ServeReplica:omai:model-{CHAT}"
GCS = r"/gcs_server "
RUNNING, QUEUED = 4, {NARROW: 16, PATIENT: 2000}
LONGEST_S = 3600.0
PATIENCE_S = 900  # of a test that is the first, which waits until the platform has started
eventually = partial(patience.eventually, patience_s=120.0)
SLACK = 5.0  # criteria's times are of an idle machine; here they bound what is waited for


@dataclass(frozen=True)
class Platform:
    """A running platform: what Served has, and its processes."""

    served: Served
    server_pid: int

    def pids(self, title: str) -> list[int]:
        """Return its processes whose command line has a match of the pattern."""
        found = []
        for pid in descendants(self.server_pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if re.search(title, command.replace(b"\0", b" ").decode(errors="replace")):
                found.append(pid)
        return found

    def is_ready(self) -> bool:
        """Whether every model answers a client that has just come."""
        try:
            return httpx.get(f"{self.served.url}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False


def write_settings(config: Path, state_dir: Path, models: tuple[Path, Path]) -> Settings:
    """Write a configuration of small models, and return it as it is read."""
    chat, embedding = map(str, models)
    two = {"num_cpus": 0.1, "replicas": {"min": 2, "max": 2}}
    values = {
        "state_dir": str(state_dir),
        "log_file": str(state_dir / "omai.log"),
        "ingress": {"replicas": 2, "num_cpus": 0.1},
        "telemetry": {"traces": str(state_dir / "traces"), "traces_ratio": 1},
        "tiers": {"wide": {"requests_per_minute": 10**8, "tokens_per_minute": 10**12}},
        "models": [
            {"name": CHAT, "task": "chat", "source": chat, **two},
            {"name": EMBEDDING, "task": "embedding", "source": embedding, **two},
            *(
                {
                    "name": name,
                    "task": "chat",
                    "source": chat,
                    "num_cpus": 0.1,
                    "max_running_requests": RUNNING,
                    "max_queued_requests": queued,
                }
                for name, queued in QUEUED.items()
            ),
        ],
    }
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_settings(config, environment={})


@contextmanager
def running(
    root: Path, models: tuple[Path, Path], longest_s: float = LONGEST_S
) -> Iterator[Platform]:
    """Run a platform in a directory; it ends with the context, and is killed after longest_s."""
    state_dir = root / "state"
    state_dir.mkdir()
    config = root / "platform.yaml"
    settings = write_settings(config, state_dir, models)
    arguments = ("--config", str(config))
    with serving(state_dir, None, *arguments, dashboard=True, longest_s=longest_s) as process:
        url = address(process)
        settings = settings.model_copy(update={"port": int(url.rpartition(":")[2])})
        yield Platform(Served(url, settings), process.pid)
        process.terminate()
        process.wait(120)
