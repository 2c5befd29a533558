"""Runs a script in LiteLLM's environment (`make bench-setup`), beside what it is compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_PYTHON = Path(__file__).resolve().parent.parent / ".venv-bench" / "litellm" / "bin" / "python"


def run_litellm(script: str, calls: int) -> dict[str, float] | None:
    """Return the JSON object that the script prints last; None where it cannot run.

    calls: the script's argument.
    """
    if not _PYTHON.exists():
        return None
    done = subprocess.run(
        [_PYTHON, "-c", script, str(calls)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
