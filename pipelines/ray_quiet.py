"""Keep Ray's own lines off the user's terminal; its log files keep them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def quiet_ray_start() -> Iterator[None]:
    """Start Ray within: its C++ side then prints nothing below a fatal error, ever.

    Setting that level prints a line too, so what reaches the stderr descriptor meanwhile is
    dropped. Python's exceptions still say what went wrong. Its Python side prints what the cluster
    reports of other processes on stdout, where a report in JSON may be: that is turned off.
    """
    from ray._private import worker

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    kept = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDERR)
        yield
        worker._worker_logs_enabled = False
    finally:
        os.dup2(kept, STDERR)
        os.close(nowhere)
        os.close(kept)


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Turn off Ray Data's progress bars and console lines; its file log stays."""
    from ray.data import DataContext

    context = DataContext.get_current()
    shown = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    consoles = [
        handler
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
    ]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = shown
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)
