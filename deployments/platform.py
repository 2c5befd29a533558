"""The whole platform on this machine: a Ray of its own, Serve on it, until a signal ends it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import multiprocessing
import os
import queue
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any

from deployments.edge import CALLBACK, CALLBACK_VARIABLE, HAPROXY_VARIABLE, THROUGHPUT_VARIABLE
from omai_ray.catalog import ModelSpec, locate, locate_adapters
from omai_ray.engines.checkpoint import check_adapter, check_weights
from omai_ray.errors import ConfigError, OMAiError
from omai_ray.priority import computing_niceness, usable_cpus
from omai_ray.settings import EDGE_VARIABLE, EdgeSettings, Settings
from omai_ray.text.chat_template import ChatTokenizer
from omai_ray.text.embedding_input import EmbeddingTokenizer, PairTokenizer

CLUSTER_FILE = "cluster.json"
TOKEN_FILE = "ray_token"  # noqa: S105 - a name
SERVE_APP = "omai"
LOCK_FILE = "serve.lock"
_TARGETS = "prom_metrics_service_discovery.json"  # Ray's dashboard keeps it
_READY_TIMEOUT_S = 600.0
_POLL_S = 0.2
# What a running platform cannot change. The last three are of processes that a reload leaves alone:
# what they were started with would stay.
_FIXED = (
    "host",
    "port",
    "state_dir",
    "database_url",
    "pepper_file",
    "files",
    "log_file",
    "dashboard",
    "proxy",
    "telemetry",
    "ingress.max_body_bytes",
    "limiter.snapshot_s",
)
_END_S = 1.0  # for Serve to take notice of replicas that have ended


def check_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0. Raises ConfigError where it cannot be had."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; "
                "choose another `port` (OMAI_PORT, or --port of serve; 0 takes any free one), "
                "or another `host`"
            ) from error
        return int(probe.getsockname()[1])


def check_models(models: Iterable[ModelSpec], where: str = "") -> None:
    """Fetch what is not here yet; raise ConfigError for a model that cannot be served.

    Doing so before anything starts shows the download, and its failure, on the terminal.
    where: the file of the models, as `FILE: `.
    """
    for place, spec in enumerate(models):
        try:
            check_model(spec)
        except OMAiError as error:
            raise ConfigError(f"{where}models.{place}.source: {error.message}") from error


def check_models_apart(models: Iterable[ModelSpec], where: str = "") -> None:
    """Do the same in a process of its own, so that a signal ends it, a download in it too.

    Those go on in threads that this process would wait for before it could end.
    """
    context = multiprocessing.get_context("spawn")
    answer, told = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(told, tuple(models), where), daemon=True)
    process.start()
    told.close()
    try:
        problem: str | None = answer.recv()
    except EOFError:
        raise ConfigError(f"{where}models: their check ended before it was done") from None
    finally:
        process.kill()
        process.join()
    if problem is not None:
        raise ConfigError(problem)


def _tell(told: Connection, models: Iterable[ModelSpec], where: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    try:
        check_models(models, where)
    except ConfigError as error:
        told.send(error.message)
    else:
        told.send(None)


def check_model(spec: ModelSpec, *, fetch: bool = True) -> None:
    """Read what can be read of a model without loading it. Raises OMAiError for what is wrong.

    fetch: get what is not here yet from the hub; else that is a NotFetched.
    """
    directory = locate(spec, fetch=fetch)
    check_weights(spec, directory)
    for adapter in locate_adapters(spec, fetch=fetch).values():
        check_adapter(adapter)
    if spec.task == "chat":
        ChatTokenizer(directory, spec.context)
    elif spec.task == "rerank":
        PairTokenizer(directory, spec.context)
    else:
        EmbeddingTokenizer(directory, spec.context, spec.prompt)


def serve_until_signal(
    settings: Settings,
    on_ready: Callable[[str], None],
    on_hangup: Callable[[Platform], None],
    on_end: Callable[[float], None],
    where: str = "",
) -> None:
    """Start everything, call `on_ready` with the address once it answers, end at SIGINT or SIGTERM.

    on_hangup: called at SIGHUP, to reload; SIGINT or SIGTERM end it in the middle. on_end: called
    with the seconds for which what is being answered is waited for, unless a second signal comes.
    where: the file of the settings, as `FILE: `. Raises ConfigError where it cannot start,
    KeyboardInterrupt where a signal came before it had.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it serves
    platform = Platform(settings, where)
    with _only_one(settings.state_dir):
        try:
            address = platform.start()
            with contextlib.suppress(KeyboardInterrupt):
                came = _signals()
                on_ready(address)
                while came.get() == signal.SIGHUP:
                    on_hangup(platform)
        finally:
            platform.stop(on_end)


def _signals() -> queue.SimpleQueue[int]:
    """Return where signals come from now on; SIGINT and SIGTERM also end what is done meanwhile.

    In the queue they are found where what they interrupted has not let the exception through.
    """
    came: queue.SimpleQueue[int] = queue.SimpleQueue()

    def end(number: int, _: object) -> None:
        came.put(number)
        raise KeyboardInterrupt

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, end)
    signal.signal(signal.SIGHUP, lambda number, _: came.put(number))
    return came


def fixed_changes(before: Settings, after: Settings) -> list[str]:
    """Return the keys that differ and that a running platform cannot change."""
    return [key for key in _FIXED if attrgetter(key)(before) != attrgetter(key)(after)]


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

    def __init__(self, settings: Settings, where: str = "") -> None:
        self._settings = settings
        self._where = where
        self._cluster_file = settings.state_dir / CLUSTER_FILE
        self._serves = False

    def start(self) -> str:
        """Return the address once every model answers."""
        token_file = _token_file(self._settings.state_dir)
        # Ray reads these when it is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ["FORWARDED_ALLOW_IPS"] = ""  # X-Forwarded-* is for our own trusted_proxies
        directory = _fresh_ray_directory(self._settings.state_dir)
        os.environ |= proxy_environment(self._settings)
        if self._settings.proxy == "haproxy":
            os.environ |= haproxy_environment(directory, self._settings.drain_s)
        from deployments.traces import environment

        os.environ |= environment(self._settings.telemetry)
        try:
            computing_niceness(os.environ)  # engines read it, where nobody is told
        except ValueError as error:
            raise ConfigError(str(error)) from None
        os.environ.setdefault("RAY_worker_niceness", "0")  # replicas answer people; Ray has 15
        os.environ.setdefault("RAY_metrics_report_interval_ms", "5000")  # `top` looks; Ray has 10 s
        for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"):  # Ray's are two fixed ones
            os.environ.setdefault(name, str(check_port("127.0.0.1", 0)))
        import ray
        from ray import serve
        from ray.serve.config import ProxyLocation
        from ray.serve.schema import LoggingConfig

        settings = self._settings
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            context = ray.init(**_ray_options(settings))
        except Exception as error:
            if "dashboard" not in str(error):
                raise
            raise ConfigError(
                "Ray's dashboard did not start in time: start again on a less busy machine, set "
                "RAY_DASHBOARD_STARTUP_TIMEOUT_S, or go without it (`dashboard: false`)"
            ) from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ray.init has put its own
        self._check_resources(settings)
        self._write_cluster_file(context)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options={"host": settings.host, "port": settings.port},
            logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
        )
        self._deploy(settings)
        address = f"http://{_reachable(settings.host)}:{settings.port}"
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not _answers(f"{address}/readyz"):
            _check_not_failed(settings)
            if time.monotonic() > deadline:
                raise ConfigError(f"{address} did not become ready in {_READY_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        self._serves = True
        return address

    @property
    def settings(self) -> Settings:
        """What is served now."""
        return self._settings

    def reload(self, settings: Settings) -> None:
        """Go over to other settings; models whose entries stay the same run on.

        Raises ConfigError where this needs a new start, or fails; then all stays as it is.
        """
        fixed = fixed_changes(self._settings, settings)
        if fixed:
            raise ConfigError(f"{self._where}{', '.join(fixed)}: changed; stop and start for that")
        self._check_resources(settings)
        self._deploy(settings)
        try:
            _wait_until_running(settings)
        except ConfigError:
            self._deploy(self._settings)
            raise
        self._settings = settings

    def _deploy(self, settings: Settings) -> None:
        from ray import serve

        from deployments.app import build

        target = serve.RunTarget(build(settings), name=SERVE_APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)

    def _check_resources(self, settings: Settings) -> None:
        """Raise ConfigError for models that would wait for ever for what is not here."""
        import ray

        from deployments.app import logical_cpus

        here: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = sum(spec.num_gpus * max(spec.replicas.min, 1) for spec in settings.models)
        for key, needed, there in (
            ("num_gpus", gpus, here.get("GPU", 0.0)),
            ("num_cpus", logical_cpus(settings), here.get("CPU", 0.0)),
        ):
            if needed > there:
                raise ConfigError(
                    f"{self._where}models: {key} of all comes to {needed:g}, and this server has, "
                    f"since its start, {there:g}: lower {key}, or replicas.min"
                )

    def stop(self, on_end: Callable[[float], None]) -> None:
        """Let the replicas finish what they are at, for drain_s or to a signal, then end Ray.

        on_end: called with drain_s before.
        """
        import ray

        self._cluster_file.unlink(missing_ok=True)
        if not ray.is_initialized():
            return
        with contextlib.suppress(KeyboardInterrupt):
            if self._serves:
                on_end(self._settings.drain_s)
                self._drain()
        ray.shutdown()

    def _drain(self) -> None:
        from ray import serve

        from deployments.app import SETTLE_S

        serve.delete(SERVE_APP, _blocking=False)
        deadline = time.monotonic() + self._settings.drain_s + SETTLE_S + _END_S
        while SERVE_APP in serve.status().applications and time.monotonic() < deadline:
            time.sleep(_POLL_S)

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
    haproxy = settings.proxy == "haproxy"
    return {
        CALLBACK_VARIABLE: CALLBACK,
        EDGE_VARIABLE: EdgeSettings.of(settings).model_dump_json(),
        HAPROXY_VARIABLE: str(int(haproxy)),
        THROUGHPUT_VARIABLE: str(int(haproxy)),
    }


def haproxy_environment(directory: Path, drain_s: float) -> dict[str, str]:
    """Return where an embedded HAProxy has its files and ports, several platforms side by side."""
    program = directory / "haproxy"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deployments.haproxy "$@"\n')
    program.chmod(0o700)
    names = {
        "BINARY_PATH": program,
        "CONFIG_FILE_LOC": directory / "c",
        "SOCKET_PATH": directory / "a",  # a node's id follows, and a socket's path is bounded
        "METRICS_SOCKET_PATH": directory / "m",
        "SERVER_STATE_BASE": directory,
        "SERVER_STATE_FILE": directory / "s",
        "STATS_PORT": check_port("127.0.0.1", 0),
        "METRICS_PORT": check_port("127.0.0.1", 0),
        "HARD_STOP_AFTER_S": math.ceil(drain_s),
    }
    return {
        **{f"RAY_SERVE_HAPROXY_{name}": str(value) for name, value in names.items()},
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a busy machine is no reason to start over
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # one machine: all hear of an end
    }


def _ray_options(settings: Settings) -> dict[str, Any]:
    from deployments.app import logical_cpus

    serving = math.ceil(logical_cpus(settings))
    options: dict[str, Any] = {
        "address": "local",
        # Serving reserves its share on top of the machine's cores, which idle between requests:
        # a bulk job on the same cluster can then use them all.
        "num_cpus": serving + usable_cpus(),
        "include_dashboard": settings.dashboard,
        "dashboard_host": "127.0.0.1",
        "log_to_driver": False,
        "logging_level": "ERROR",
        "_temp_dir": str(_ray_directory(settings.state_dir)),
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


def _wait_until_running(settings: Settings) -> None:
    """Return once every replica of a deployed application runs; raise ConfigError where not."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    deadline = time.monotonic() + _READY_TIMEOUT_S
    while serve.status().applications[SERVE_APP].status != ApplicationStatus.RUNNING:
        _check_not_failed(settings)
        if time.monotonic() > deadline:
            raise ConfigError(f"the models were not ready in {_READY_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)


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
