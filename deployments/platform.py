"""The whole platform on this machine: a Ray of its own, Serve on it, until a signal ends it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from deployments.edge import CALLBACK, CALLBACK_VARIABLE
from omai_ray.catalog import ModelSpec, locate, locate_adapters
from omai_ray.engines.checkpoint import check_adapter, check_weights
from omai_ray.errors import ConfigError
from omai_ray.settings import EDGE_VARIABLE, Settings
from omai_ray.text.chat_template import ChatTokenizer
from omai_ray.text.embedding_input import EmbeddingTokenizer, PairTokenizer

CLUSTER_FILE = "cluster.json"
TOKEN_FILE = "ray_token"  # noqa: S105 - a name
SERVE_APP = "omai"
LOCK_FILE = "serve.lock"
_TARGETS = "prom_metrics_service_discovery.json"  # Ray's dashboard keeps it
_READY_TIMEOUT_S = 600.0
_POLL_S = 0.2
STOP_S = 8.0


def check_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0. Raises ConfigError where it cannot be had."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; "
                "choose another with --port (0 takes any free one) or --host"
            ) from None
        return int(probe.getsockname()[1])


def check_models(models: Iterable[ModelSpec]) -> None:
    """Fetch what is not here yet; raise ConfigError for a model that cannot be served.

    Doing so before anything starts shows the download, and its failure, on the terminal.
    """
    for spec in models:
        directory = locate(spec)
        check_weights(spec, directory)
        for adapter in locate_adapters(spec).values():
            check_adapter(adapter)
        if spec.task == "chat":
            ChatTokenizer(directory, spec.context)
        elif spec.task == "rerank":
            PairTokenizer(directory, spec.context)
        else:
            EmbeddingTokenizer(directory, spec.context, spec.prompt)


def serve_until_signal(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Start everything, call `on_ready` with the address once it answers, end at SIGINT or SIGTERM.

    Raises ConfigError where it cannot start, KeyboardInterrupt where a signal came before it had.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    platform = Platform(settings)
    with _only_one(settings.state_dir):
        try:
            on_ready(platform.start())
            _wait_for_signal()
        finally:
            platform.stop()


def _wait_for_signal() -> None:
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    stop.wait()


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state directory. Raises ConfigError where another server does."""
    try:
        lock = (state_dir / LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigError(f"{state_dir}: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another omai-ray serve uses {state_dir}: stop it, or choose another --state-dir"
            ) from None
        yield


class Platform:
    """An embedded Ray with the Serve application on it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cluster_file = settings.state_dir / CLUSTER_FILE
        self._serves = False

    def start(self) -> str:
        """Return the address once every model answers."""
        token_file = _token_file(self._settings.state_dir)
        # Ray reads these when it is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ["FORWARDED_ALLOW_IPS"] = ""  # X-Forwarded-* is for our own trusted_proxies
        os.environ |= proxy_environment(self._settings)
        from deployments.traces import environment

        os.environ |= environment(self._settings.telemetry)
        os.environ.setdefault("RAY_worker_niceness", "0")  # replicas answer people; Ray has 15
        os.environ.setdefault("RAY_metrics_report_interval_ms", "5000")  # `top` looks; Ray has 10 s
        import ray
        from ray import serve
        from ray.serve.config import ProxyLocation
        from ray.serve.schema import LoggingConfig

        from deployments.app import build

        settings = self._settings
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        context = ray.init(**_ray_options(settings))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ray.init has put its own
        _check_gpus(settings)
        self._write_cluster_file(context)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options={"host": settings.host, "port": settings.port},
            logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
        )
        target = serve.RunTarget(build(settings), name=SERVE_APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        address = f"http://{_reachable(settings.host)}:{settings.port}"
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not _answers(f"{address}/readyz"):
            _check_not_failed(settings)
            if time.monotonic() > deadline:
                raise ConfigError(f"{address} did not become ready in {_READY_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        self._serves = True
        return address

    def stop(self) -> None:
        """Let the replicas finish what they are at, for STOP_S at most, then end Ray."""
        import ray
        from ray import serve

        self._cluster_file.unlink(missing_ok=True)
        if not ray.is_initialized():
            return
        if self._serves:
            serve.delete(SERVE_APP, _blocking=False)
            deadline = time.monotonic() + STOP_S
            while SERVE_APP in serve.status().applications and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        ray.shutdown()

    def _write_cluster_file(self, context: Any) -> None:
        """Say where the cluster is, for `omai-ray embed --address`, `top` and the curious."""
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
        content = {
            "ray": context.address_info["gcs_address"],
            "token_file": os.environ["RAY_AUTH_TOKEN_PATH"],
            "dashboard": dashboard,
            "metrics": _metrics_address(context.address_info),
            "metrics_targets": str(Path(context.address_info["session_dir"]) / _TARGETS),
        }
        self._cluster_file.write_text(json.dumps(content), encoding="utf-8")


def _metrics_address(address_info: dict[str, Any]) -> str:
    """Return where this node's metrics are read."""
    host = address_info["node_ip_address"]
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{address_info['metrics_export_port']}/metrics"


def proxy_environment(settings: Settings) -> dict[str, str]:
    """Return what Serve's proxies find in their environment, so that they have our edge."""
    return {CALLBACK_VARIABLE: CALLBACK, EDGE_VARIABLE: settings.ingress.model_dump_json()}


def _ray_options(settings: Settings) -> dict[str, Any]:
    from deployments.app import logical_cpus

    serving = math.ceil(logical_cpus(settings))
    options: dict[str, Any] = {
        "address": "local",
        # Serving reserves its share on top of the machine's cores, which idle between requests:
        # a bulk job on the same cluster can then use them all.
        "num_cpus": serving + _usable_cpus(),
        "include_dashboard": settings.dashboard,
        "dashboard_host": "127.0.0.1",
        "log_to_driver": False,
        "logging_level": "ERROR",
        "_temp_dir": str(_fresh_ray_directory(settings.state_dir)),
    }
    if settings.dashboard:
        options["dashboard_port"] = check_port("127.0.0.1", 0)
    return options


def _token_file(state_dir: Path) -> Path:
    """Return the file with this platform's Ray token, made on first use, for its owner alone.

    Whoever has it can run code on the cluster, and see its dashboard.
    """
    path = state_dir / TOKEN_FILE
    if not path.is_file():
        draft = path.with_name(f"{TOKEN_FILE}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        draft.replace(path)
    return path


def _ray_directory(state_dir: Path) -> Path:
    """Return a short directory of this state's own: Ray's sockets allow only ~100 characters."""
    name = hashlib.sha256(str(state_dir).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"omai-ray-{name}"


def _fresh_ray_directory(state_dir: Path) -> Path:
    """Make that directory anew, for its owner alone; the logs of the last run go with the old one.

    Raises ConfigError where somebody else has made it.
    """
    path = _ray_directory(state_dir)
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{path}, Ray's own directory: {error.strerror or error}") from None
    return path


def _check_gpus(settings: Settings) -> None:
    """Raise ConfigError for models that would wait for ever for a GPU that is not here."""
    import ray

    needed = sum(spec.num_gpus * max(spec.replicas.min, 1) for spec in settings.models)
    here = float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
    if needed > here:
        raise ConfigError(f"the models need {needed:g} GPUs; this machine has {here:g}")


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reachable(host: str) -> str:
    """Return an address that this machine can call for one that it listens on."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _check_not_failed(settings: Settings) -> None:
    """Raise ConfigError where a replica could not start, saying why."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    application = serve.status().applications[SERVE_APP]
    if application.status == ApplicationStatus.DEPLOY_FAILED:
        deployments = application.deployments.values()
        texts = [application.message, *(deployment.message for deployment in deployments)]
        raise ConfigError(_why_not_started(texts, settings))


def _why_not_started(texts: list[str], settings: Settings) -> str:
    """Return the line that says most of a replica's failure; the log files of Ray have it all."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("omai_ray.errors.")]
    raised = [line for line in lines if "Error:" in line]
    reason = (ours or raised or lines)[-1].removeprefix("omai_ray.errors.")
    logs = _ray_directory(settings.state_dir) / "session_latest" / "logs" / "serve"
    return f"the application did not start: {reason} (more in {logs})"


def _answers(url: str) -> bool:
    try:
        # Never by way of a proxy that the environment names: this machine is meant.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=5):
            return True
    except OSError:
        return False
