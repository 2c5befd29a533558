"""What processes gain in resident memory while something happens, for benchmarks/batch.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sampler import Sampler

EVERY_S = 0.01


class Growth(Sampler):
    """A context that watches this process's descendants.

    mib: the most that each has gained of memory of its own. shared_mib: the most that one of them
    has gained of shared memory, which is Ray's object store, the same pages for all of them.
    titles: what to call one -> what its title has in it. Raises SystemExit where there is none.
    """

    def __init__(self, titles: dict[str, str]) -> None:
        super().__init__(EVERY_S)
        self._pids = {name: _descendant(title) for name, title in titles.items()}
        self._before = {name: _resident_mib(pid) for name, pid in self._pids.items()}
        self.mib = dict.fromkeys(titles, 0.0)
        self.shared_mib = 0.0

    def take(self) -> None:
        """Keep what is more than before."""
        for name, pid in self._pids.items():
            own, shared = _resident_mib(pid)
            own_before, shared_before = self._before[name]
            self.mib[name] = max(self.mib[name], own - own_before)
            self.shared_mib = max(self.shared_mib, shared - shared_before)


def _descendant(title: str) -> int:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and _is_mine(int(path.name), title):
            return int(path.name)
    raise SystemExit(f"no process of the platform is called '{title}'")


def _is_mine(pid: int, title: str) -> bool:
    try:
        if title.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        while pid > 1 and pid != os.getpid():
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return False
    return pid == os.getpid()


def _resident_mib(pid: int) -> tuple[float, float]:
    """Return what is a process's own, files it has mapped included, and what it shares."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in _fields(lines, "Rss")}
    return (kib["RssAnon"] + kib["RssFile"]) / 1024, kib["RssShmem"] / 1024


def _fields(lines: list[str], prefix: str) -> Iterator[tuple[str, str, str]]:
    return (line.partition(":") for line in lines if line.startswith(prefix))
