"""How a bulk job ends early; each message says what to do next."""

from __future__ import annotations

from omai_ray.errors import ConfigError, OMAiError


class OutputInUse(ConfigError):
    """Another process runs a job into the same output directory."""


class OutputMismatch(ConfigError):
    """The output directory holds something that this job must not mix with."""


class RunFailed(OMAiError):
    """The job stopped before its end. What was committed stays; the same command resumes."""


def brief(error: Exception) -> str:
    """Return the kind of a library's error and its first line; what follows may quote data."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no detail'}"
