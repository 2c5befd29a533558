"""What `omai-ray doctor` looks at: each check returns what it found, and how to mend it."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError, NotFetched, OMAiError
from omai_ray.priority import usable_cpus
from omai_ray.settings import Settings
from omai_ray.store.store import schema_of
from omai_ray.store.tables import REVISIONS

Status = Literal["ok", "warning", "failed"]
DISTRIBUTION = "omai-ray"
REDIS_DEADLINE_S = 1.0
FULL_DISK_SHARE = 0.95
"""Ray starts nothing more on a disk that is fuller."""
LOW_DISK_BYTES = 2 * 1024**3
_OWN_EXTRAS = ("dev", "docs")  # this repository's tools: serving does not need them
_ON_GPU_NODES = "on a cluster, run doctor on the GPUs' nodes"
_FEATURES = {
    "bf16": ("avx512_bf16", "bf16"),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX": ("amx_bf16", "amx_int8"),
}


@dataclass(frozen=True)
class Finding:
    """What a check found; remedy: what to do, where it is not ok."""

    check: str
    status: Status
    found: str
    remedy: str | None = None


def diagnose_machine() -> Iterator[Finding]:
    """Check what does not depend on settings."""
    yield check_python()
    yield from check_packages()
    yield check_torch()
    yield check_compiler()


def diagnose(settings: Settings, *, has_torch: bool) -> Iterator[Finding]:
    """Check what the settings ask for; CPU and GPU only where torch can tell."""
    if has_torch:
        yield check_cpu(settings.models)
        yield check_gpu(settings.models)
    yield check_port(settings.host, settings.port)
    yield check_state_dir(settings.state_dir)
    yield check_disk("disk of the state directory", settings.state_dir)
    yield check_disk("disk of Ray", Path(tempfile.gettempdir()))
    yield check_database(settings.sqlalchemy_url)
    if settings.limiter.redis_url is not None:
        yield check_redis(settings.limiter.redis_url)
    for spec in settings.models:
        yield check_model(spec)


def check_python() -> Finding:
    """Compare this Python with what the package requires."""
    wanted, found = metadata(DISTRIBUTION)["Requires-Python"], platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("python", "ok", found)
    return Finding("python", "failed", found, f"install Python {wanted}")


def check_packages() -> Iterator[Finding]:
    """Compare what is installed with the package's ranges; an extra's, where it is there."""
    right = wrong = 0
    for requirement in map(Requirement, requires(DISTRIBUTION) or []):
        if any(_is_of(requirement, extra) for extra in _OWN_EXTRAS):
            continue
        found = _installed(requirement.name)
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        wanted = f"{requirement.name}{extras}{requirement.specifier}"
        if found is not None and requirement.specifier.contains(found, prereleases=True):
            right += 1
            if requirement.name == "ray":
                yield Finding("ray", "ok", f"{found}; the same on every node of a cluster")
        elif found is not None or _is_of(requirement, ""):
            wrong += 1
            yield Finding(
                "ray" if requirement.name == "ray" else f"package {requirement.name}",
                "failed",
                found or "not installed",
                f"pip install '{wanted}'",
            )
    within = f"{right} within the ranges of pyproject.toml"
    if wrong:
        yield Finding("packages", "failed", f"{within}, {wrong} not", "install those named above")
    else:
        yield Finding("packages", "ok", within)


def check_torch() -> Finding:
    """Import torch."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "failed", f"cannot be imported: {error}", "pip install torch again")
    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def check_compiler() -> Finding:
    """Look for the C++ compiler that builds kernels for this CPU."""
    name = os.environ.get("CXX") or "c++"
    found = shutil.which(name)
    if found is not None:
        return Finding("compiler", "ok", found)
    return Finding(
        "compiler",
        "warning",
        f"no {name}: models on a CPU run on torch's own operators, more slowly",
        "install a C++ compiler (apt-get install g++)",
    )


def check_cpu(models: Iterable[ModelSpec]) -> Finding:
    """Tell which short numbers the CPU multiplies, and whether models need others."""
    import torch

    from omai_ray.engines.device import has_int8

    models = list(models)
    found = torch.cpu.get_capabilities()
    named = [name for name, flags in _FEATURES.items() if any(found.get(f) for f in flags)]
    features = f"{os.cpu_count()} CPUs, {', '.join(named) or 'none of ' + ', '.join(_FEATURES)}"
    lacking = [m.name for m in models if m.dtype == "int8" and not has_int8()]
    if lacking:
        return Finding(
            "cpu",
            "failed",
            f"{features}; dtype int8 of {', '.join(lacking)} needs VNNI",
            "set dtype: auto, or take a CPU with VNNI",
        )
    beyond = [f"{m.name} ({m.num_cpus:g})" for m in models if m.num_cpus > usable_cpus()]
    if beyond:
        return Finding(
            "cpu",
            "warning",
            f"{features}; num_cpus is more for {', '.join(beyond)}",
            "lower num_cpus: more threads than CPUs are slower; of a cluster its nodes decide",
        )
    return Finding("cpu", "ok", features)


def check_gpu(models: Iterable[ModelSpec]) -> Finding:
    """List the GPUs, and say which models want more than there are."""
    import torch

    models = list(models)
    wanting = [m.name for m in models if m.num_gpus > 0]
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        listed = ", ".join(f"{c.name} ({c.total_memory / 2**30:.0f} GiB)" for c in cards)
        beyond = [f"{m.name} ({m.num_gpus:g})" for m in models if m.num_gpus > len(cards)]
        if beyond:
            found = f"{listed}; num_gpus is more than {len(cards)} for {', '.join(beyond)}"
            return Finding("gpu", "failed", found, f"lower num_gpus; {_ON_GPU_NODES}")
        least = sum(m.num_gpus * m.replicas.min for m in models)
        if least > len(cards):
            found = f"{listed}; num_gpus times replicas.min is, for all models, {least:g}"
            remedy = f"lower num_gpus or replicas.min, else replicas wait; {_ON_GPU_NODES}"
            return Finding("gpu", "warning", found, remedy)
        return Finding("gpu", "ok", listed)
    if not wanting:
        return Finding("gpu", "ok", "none, and no model asks for one")
    remedy = (
        "install a torch with CUDA, or set num_gpus: 0"
        if torch.version.cuda is None
        else "see whether nvidia-smi lists a GPU, or set num_gpus: 0"
    )
    found = f"none that torch sees, and num_gpus is above 0 for {', '.join(wanting)}"
    return Finding("gpu", "failed", found, f"{remedy}; {_ON_GPU_NODES}")


def check_port(host: str, port: int) -> Finding:
    """Try to listen where the API will."""
    try:
        from deployments.platform import check_port as listen
    except (ImportError, OSError) as error:
        return _unchecked("port", error)
    try:
        free = listen(host, port)
    except ConfigError as error:
        problem, _, remedy = error.message.partition("; ")
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            remedy = f"end what listens there, or {remedy}"
        return Finding("port", "failed", problem, remedy)
    return Finding("port", "ok", f"{host}:{free} is free")


def check_state_dir(path: Path) -> Finding:
    """See whether the state directory can be written, or made, and is closed to others."""
    nearest = _existing(path)
    if not nearest.is_dir():
        return Finding(
            "state directory", "failed", f"{nearest} is no directory", "choose another --state-dir"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(
            "state directory",
            "failed",
            f"{nearest} cannot be written",
            f"chown it to {os.geteuid()}, or choose another --state-dir",
        )
    if nearest != path:
        return Finding("state directory", "ok", f"{path} is made at the first start")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "state directory",
            "warning",
            f"{path} is open to others ({mode:o})",
            f"chmod 700 {path}",
        )
    return Finding("state directory", "ok", str(path))


def check_disk(check: str, path: Path) -> Finding:
    """Compare a disk with what Ray and the state directory need."""
    nearest = _existing(path)
    usage = shutil.disk_usage(nearest)
    share = 1 - usage.free / usage.total
    found = f"{usage.free / 2**30:.1f} GiB free at {nearest}, {share:.0%} full"
    if share > FULL_DISK_SHARE:
        full = f"make room: Ray starts nothing above {FULL_DISK_SHARE:.0%}"
        return Finding(check, "failed", found, full)
    if usage.free < LOW_DISK_BYTES:
        return Finding(check, "warning", found, f"make room: {LOW_DISK_BYTES // 2**30} GiB or more")
    return Finding(check, "ok", found)


def check_database(url: str) -> Finding:
    """Connect to the database, and compare its schema with this version's."""
    kind = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
    try:
        revision = asyncio.run(schema_of(url))
    except ConfigError as error:
        remedy = "install the driver where it is missing (pip install 'omai-ray[postgres]'), or "
        remedy += "correct database_url (OMAI_DATABASE_URL)"
        return Finding("database", "failed", error.message, remedy)
    except OMAiError as error:
        return Finding(
            "database",
            "failed",
            f"{kind}: {error.message}",
            "see whether it runs, and that database_url (OMAI_DATABASE_URL) is its address",
        )
    if revision is None:
        return Finding("database", "ok", f"{kind}, empty: its schema is made at the first start")
    if revision != REVISIONS[-1]:
        found = f"{kind} has schema {revision}; this omai-ray needs {REVISIONS[-1]}"
        return Finding("database", "failed", found, "make a backup, then: omai-ray db upgrade")
    return Finding("database", "ok", f"{kind}, schema {revision}")


def check_redis(url: str) -> Finding:
    """Ask the limiter's Redis for an answer. What it says may repeat the URL, and is left out."""
    try:
        from redis import Redis, RedisError
    except ImportError:
        return Finding(
            "redis", "failed", "redis-py is not installed", "pip install 'omai-ray[redis]'"
        )
    remedy = "see whether it runs, and that limiter.redis_url (OMAI_REDIS_URL) is its address"
    try:
        with Redis.from_url(
            url, socket_connect_timeout=REDIS_DEADLINE_S, socket_timeout=REDIS_DEADLINE_S
        ) as server:
            server.ping()
    except (RedisError, ValueError, OSError) as error:
        return Finding("redis", "failed", f"does not answer ({type(error).__name__})", remedy)
    return Finding("redis", "ok", "answers")


def check_model(spec: ModelSpec) -> Finding:
    """Look for a model's files and its tokenizer's, without fetching them."""
    name = f"model {spec.name}"
    try:
        from deployments.platform import check_model as load_light
    except (ImportError, OSError) as error:
        return _unchecked(name, error)
    try:
        load_light(spec, fetch=False)
    except NotFetched as error:
        return Finding(
            name,
            "warning",
            f"{spec.source}: {error.message}",
            f"hf download {spec.source}; else the first start fetches it",
        )
    except OMAiError as error:
        return Finding(name, "failed", error.message, "correct its entry in models, or its files")
    except ImportError as error:
        return _unchecked(name, error)
    except OSError as error:
        return Finding(name, "failed", f"cannot be read: {error}", "see to its files")
    return Finding(name, "ok", spec.source)


def _unchecked(check: str, error: Exception) -> Finding:
    """Return what is found where the packages that a check needs cannot be imported."""
    return Finding(check, "failed", f"not checked: {error}", "install the packages, and look again")


def _is_of(requirement: Requirement, extra: str) -> bool:
    """Tell whether a requirement is one of an extra ("" for none)."""
    marker = requirement.marker
    return marker.evaluate({"extra": extra}) if marker is not None else extra == ""


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    """Return the path, or the nearest one above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())
