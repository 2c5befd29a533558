"""Builds kernels.cpp for this machine, once, and loads it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("kernels.cpp")
# Sums may be reordered, so that they become vector code; infinities and NaN stay what they are.
_FLAGS = [
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
]
_SECONDS = 120
_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the built library, or None where it cannot be built; a log line says why then."""
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        _log.info("no C++ compiler (c++, or CXX): models run on torch's own operators, more slowly")
        return None
    try:
        with _cache() as cache:
            return ctypes.CDLL(str(_built(compiler, cache)))
    except subprocess.CalledProcessError as error:
        why = (error.stderr.splitlines() or [f"status {error.returncode}"])[0]
    except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
        why = str(error)
    _log.warning("kernels.cpp cannot be built, so models run more slowly: %s", why)
    return None


def _built(compiler: str, cache: Path) -> Path:
    """Return the library, building it where this source was not built for this CPU before."""
    flags = [*_FLAGS, *_vector_flags()]
    version = _run([compiler, "--version"])
    parts = [_SOURCE.read_text(encoding="utf-8"), version, *flags, *platform.libc_ver(), _cpu()]
    path = cache / f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / path.name
            _run([compiler, *flags, str(_SOURCE), "-o", str(made)])
            made.replace(path)
    return path


def _run(command: list[str]) -> str:
    """Run this machine's compiler, and return what it prints."""
    ran = subprocess.run(  # noqa: S603 - on a file of this package
        command, check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS
    )
    return ran.stdout


def _vector_flags() -> list[str]:
    """Return what has a compiler use AVX-512's whole width, which it does not by itself."""
    wide = torch.cpu.get_capabilities().get("avx512_f")
    return ["-mprefer-vector-width=512"] if wide else []


def _cpu() -> str:
    """Tell this CPU from others that may share the cache: a home directory on a network."""
    return ",".join(f"{name}={found}" for name, found in torch.cpu.get_capabilities().items())


@contextmanager
def _cache() -> Iterator[Path]:
    """Give a directory that nobody else can write to: what lies there is run.

    Where there is none to keep, one that is removed after; what was loaded from it stays loaded.
    """
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omai-ray"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        own = found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(path, os.W_OK)
    except (OSError, RuntimeError):  # no home, or none that can be written to
        own = False
    if own:
        yield path
    else:
        with tempfile.TemporaryDirectory(prefix="omai-ray-") as folder:
            yield Path(folder)
