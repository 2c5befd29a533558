"""The platform under mixed traffic, something killed each minute, and the books balanced.

`python -m tests.faults.soak [MINUTES]` (`make soak`): at least 3, of which the last has no kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.checkpoints import save_chat_checkpoint, save_embedding_checkpoint
from tests.faults import reservations
from tests.faults.platform import (
    CHAT_REPLICA,
    CONTROLLER,
    EMBEDDING,
    INGRESS,
    LIMITER,
    LONGEST_S,
    Platform,
    eventually,
    running,
)
from tests.faults.traffic import WAYS, Traffic
from tests.programs import descendants

VICTIMS = {
    "chat replica": CHAT_REPLICA,
    "embedding replica": rf"^ray::ServeReplica:omai:model-{EMBEDDING}",
    "ingress replica": INGRESS,
    "limiter": LIMITER,
    "controller": CONTROLLER,
    "batch driver": r"^ray::BatchDriver",
    "batch worker": r"^ray::BatchWorker",
}
MINUTE_S = 60.0
# A replica's memory grows for its first minutes: pages of its cache, and what malloc keeps.
WARM_UP_MINUTES, WARM_UP_SHARE = 8.0, 0.4
GROWTH = 0.05
# Ray's log monitor keeps the files of workers that have ended open, and closes them all at 200.
BOUNDED = {("log_monitor.py", "files"): 256}
# Below these, 5 % is less than what a process takes and gives back while it works.
LEAST = {"files": 8, "threads": 8, "bytes": 16 * 2**20}
SAMPLES = 10
SNAPSHOT_S = 3.0


Resources = dict[int, dict[str, float]]
"""What processes hold, by their ids."""


@dataclass(frozen=True)
class Finding:
    """Something that had to hold, and what was found."""

    holds: bool
    text: str


def main(minutes: float) -> bool:
    """Run; print what was done and found; return whether all holds."""
    with tempfile.TemporaryDirectory(prefix="omai-soak-") as directory:
        root = Path(directory)
        models = (
            save_chat_checkpoint(root / "chat", context=2048),
            save_embedding_checkpoint(root / "embedding"),
        )
        findings = []
        with running(root, models, LONGEST_S + minutes * MINUTE_S) as platform:
            for finding in soak(platform, minutes):
                print("ok    " if finding.holds else "FAILED", finding.text, flush=True)
                findings.append(finding)
    return all(finding.holds for finding in findings)


def soak(platform: Platform, minutes: float) -> Iterator[Finding]:
    """Let the traffic run for so long, then yield what is found."""
    account, key = platform.served.create_key("wide")
    killed: Counter[str] = Counter()
    rng = random.Random(1)
    begun = time.monotonic()
    warm_up = min(WARM_UP_MINUTES, WARM_UP_SHARE * minutes)
    seen: list[Resources] = []
    with Traffic(platform.served, key, *WAYS) as traffic:
        for minute in range(1, int(minutes)):
            seen.append(resources(platform))
            kind = rng.choice(list(VICTIMS))
            kill(platform, VICTIMS[kind], rng)
            killed[kind] += 1
            print(f"minute {minute}: killed one {kind}; {told(traffic)}", flush=True)
            eventually(platform.is_ready)
            time.sleep(max(0.0, begun + minute * MINUTE_S - time.monotonic()))
        calm_s, failed = time.time(), len(traffic.failures)
        seen.append(resources(platform))
        time.sleep(max(0.0, begun + minutes * MINUTE_S - time.monotonic()))
    print(f"end: {told(traffic)}", flush=True)
    time.sleep(SNAPSHOT_S)
    yield Finding(
        len(traffic.failures) == failed,
        f"{len(traffic.failures) - failed} requests failed in the last minute, which had no kill "
        f"({failed} before it)",
    )
    yield from balance(platform, account, traffic, killed)
    yield from held(platform, calm_s, len(traffic.failures) + traffic.left)
    yield from growth(seen, round(warm_up))


def told(traffic: Traffic) -> str:
    """Return how the traffic is doing."""
    counts = (traffic.answered.total(), traffic.left, len(traffic.failures))
    return "{} answered, {} left, {} failed".format(*counts)


def kill(platform: Platform, title: str, rng: random.Random) -> None:
    """Kill one of the processes of a kind, once there is one."""

    def is_killed() -> bool:
        found = platform.pids(title)
        if not found:
            return False
        try:
            os.kill(rng.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    eventually(is_killed)


def balance(
    platform: Platform, account: str, traffic: Traffic, killed: Counter[str]
) -> Iterator[Finding]:
    """Compare the ledger with what the clients were told."""
    records = platform.served.records(account)
    completed = Counter(
        (record["model"], record["prompt_tokens"], record["completion_tokens"])
        for record in records
        if record["status"] == 200
    )
    missing = traffic.answered - completed
    yield Finding(
        not missing,
        f"the ledger has {traffic.answered.total() - missing.total()} of "
        f"{traffic.answered.total()} complete answers, to the token",
    )
    asked = traffic.answered.total() + traffic.left
    unrecorded = asked - len(records)
    yield Finding(
        unrecorded <= killed["ingress replica"],
        f"{max(0, unrecorded)} streams that were left have no record "
        f"(ingress replicas killed: {killed['ingress replica']})",
    )
    yield Finding(
        -unrecorded <= len(traffic.failures),
        f"{max(0, -unrecorded)} records are of requests that failed ({len(traffic.failures)})",
    )


def held(platform: Platform, calm_s: float, cut_off: int) -> Iterator[Finding]:
    """Look at the reservations that the limiter still holds."""
    command = [sys.executable, "-m", reservations.__name__, str(platform.served.settings.state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made = json.loads(done.stdout)
    late = sum(made_s >= calm_s for made_s in made)
    yield Finding(late == 0, f"{late} reservations of the last minute are held")
    yield Finding(
        len(made) <= cut_off,
        f"{len(made)} are of requests that a kill cut off; the limiter forgets them in 10 minutes",
    )


def resources(platform: Platform) -> Resources:
    """Return what each process holds, as the median of some seconds."""
    samples: dict[int, list[dict[str, int]]] = {}
    for _ in range(SAMPLES):
        for pid in [platform.server_pid, *descendants(platform.server_pid)]:
            process = Path(f"/proc/{pid}")
            try:
                pages = int((process / "statm").read_text().split()[1])
                sample = {
                    "files": len(list((process / "fd").iterdir())),
                    "threads": len(list((process / "task").iterdir())),
                    "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
                }
            except OSError:  # it has ended
                continue
            samples.setdefault(pid, []).append(sample)
        time.sleep(1.0)
    return {
        pid: {name: statistics.median(each[name] for each in taken) for name in LEAST}
        for pid, taken in samples.items()
    }


def title(pid: int) -> str:
    """Return what a process is called."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
    except OSError:  # it has ended
        return "ended"
    scripts = [word for word in command if word.endswith(".py")]
    return Path((scripts or command)[0]).name


def growth(seen: list[Resources], warm_up: int) -> Iterator[Finding]:
    """Compare what processes hold at the end with what they held after their first minutes.

    seen: by the minute. A process counts that was there for longer than the warm-up.
    """
    end = seen[-1]
    since = {pid: min(at for at, held in enumerate(seen) if pid in held) for pid in end}
    warm = {
        pid: seen[at + warm_up][pid] for pid, at in since.items() if at + warm_up < len(seen) - 1
    }
    yield Finding(bool(warm), f"{len(warm)} processes were there for over {warm_up + 1} minutes")
    for name, least in LEAST.items():
        grown = [
            f"{title(pid)} ({pid}) from {held[name]:,.0f} to {end[pid][name]:,.0f}"
            for pid, held in sorted(warm.items())
            if end[pid][name] - held[name] > max(GROWTH * held[name], least)
            and end[pid][name] > BOUNDED.get((title(pid), name), 0)
        ]
        yield Finding(not grown, f"{name} that grew: {', '.join(grown) or 'of none'}")


if __name__ == "__main__":
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    if minutes < 3:
        sys.exit(f"soak: MINUTES is {minutes:g}; at least 3")
    sys.exit(not main(minutes))
