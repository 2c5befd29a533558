"""How a command ends its process."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from omai_ray.errors import INTERRUPTED


def leave(status: int) -> NoReturn:
    """End this process with a command's status."""
    if status == INTERRUPTED:
        # Threads of a Ray that was starting may crash in what the interpreter frees at its end.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
