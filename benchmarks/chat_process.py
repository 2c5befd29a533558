"""A way of generating in a process of its own, as the chat benchmarks use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNNER = Path(__file__).with_name("chat_runner.py")
PROMPT_TOKENS = 128


class Runner:
    """One way of generating, in its own process; only one of them works at a time."""

    def __init__(
        self, name: str, model: Path, new_tokens: int, folder: Path, device: str = "cpu"
    ) -> None:
        self._log = folder / f"{name}.log"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(RUNNER), name, str(model), str(new_tokens), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
            )
        if self._answer() != "ready":
            raise SystemExit(f"{name} could not be started: {self._tail()}")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _tail(self) -> str:
        return " | ".join(self._log.read_text().strip().splitlines()[-3:])

    def run(self, what: int | str) -> float:
        """Continue so many prompts at once and return the seconds it took, or another figure."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise SystemExit(f"a runner ended: {self._tail()}")
        return float(answer)

    def close(self) -> None:
        """End the process, and the servers that it started."""
        self._process.communicate()
