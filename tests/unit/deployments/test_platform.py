"""What a running platform does with signals, and with settings that change."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments import platform
from deployments.platform import (
    Platform,
    check_models_apart,
    fixed_changes,
    serve_until_signal,
)
from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError
from omai_ray.settings import EdgeSettings, Settings, parse_settings


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"files": {"max_bytes": 1}}, "files"),
        ({"telemetry": {"traces": "/spans"}}, "telemetry"),
        ({"telemetry": {"traces_ratio": 1}}, "telemetry"),
        ({"ingress": {"max_body_bytes": 1024}}, "ingress.max_body_bytes"),
        ({"limiter": {"snapshot_s": 9}}, "limiter.snapshot_s"),
    ],
)
def test_a_reload_names_what_needs_a_new_start(changed: dict[str, Any], key: str) -> None:
    """What processes were given when they started would stay as it was."""
    before, after = Settings(), parse_settings(changed, {})
    assert [key] == fixed_changes(before, after)
    with pytest.raises(ConfigError, match=f"^x.yaml: {key}: changed; stop and start for that"):
        Platform(before, "x.yaml: ").reload(after)


@pytest.mark.parametrize(
    "changed",
    [
        {"aliases": {"gpt-4o-mini": "omai-gpt-4"}},
        {"ingress": {"replicas": 2, "cors_origins": ["*"]}},
        {"log_level": "DEBUG", "drain_s": 1, "sessions": {"idle_minutes": 5}},
    ],
)
def test_a_reload_may_change_the_rest(changed: dict[str, Any]) -> None:
    """It is in what Serve deploys anew."""
    before, after = Settings(), parse_settings(changed, {})
    assert [] == fixed_changes(before, after)
    assert EdgeSettings.of(before) == EdgeSettings.of(after)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Have the handlers of signals back afterwards."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(name) for name in names]
    yield
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, handlers: None) -> list[str]:
    """Have a platform that only notes what is done with it."""
    done: list[str] = []

    class Noting:
        def __init__(self, *_: object) -> None:
            pass

        def start(self) -> str:
            done.append("start")
            return "http://here"

        def stop(self, on_end: Callable[[float], None]) -> None:
            on_end(30.0)
            done.append("stop")

    monkeypatch.setattr(platform, "Platform", Noting)
    return done


def serve(state_dir: Path, done: list[str], on_hangup: Callable[[], None]) -> None:
    """Serve, and reload as soon as it is ready."""

    def ready(address: str) -> None:
        done.append(f"ready {address}")
        signal.raise_signal(signal.SIGHUP)

    serve_until_signal(
        Settings(state_dir=state_dir), ready, lambda _: on_hangup(), lambda _: done.append("ending")
    )


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_reload_ends_the_server(
    name: signal.Signals, served: list[str], tmp_path: Path
) -> None:
    """It is drained as at any other time; the reload goes no further."""

    def reload() -> None:
        served.append("reload")
        signal.raise_signal(name)
        served.append("reloaded")

    serve(tmp_path, served, reload)
    assert ["start", "ready http://here", "reload", "ending", "stop"] == served


def test_a_reload_that_keeps_the_signal_to_itself_is_the_last(
    served: list[str], tmp_path: Path
) -> None:
    """Libraries may take the exception for a failure of their own."""

    def reload() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            served.append("kept")
        signal.raise_signal(signal.SIGHUP)

    serve(tmp_path, served, reload)
    assert ["start", "ready http://here", "kept", "ending", "stop"] == served


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_reloads_ends_the_server(
    name: signal.Signals, served: list[str], tmp_path: Path
) -> None:
    """Once it waits for one."""
    main = threading.main_thread().ident
    assert main is not None

    def reload() -> None:
        served.append("reloaded")
        threading.Timer(0.1, signal.pthread_kill, (main, name)).start()

    serve(tmp_path, served, reload)
    assert ["start", "ready http://here", "reloaded", "ending", "stop"] == served


def test_a_download_of_a_reload_ends_with_a_signal(
    monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    """However long the hub says nothing: it goes on in no thread that would be waited for."""
    main = threading.main_thread().ident
    assert main is not None

    def asked(hub: socket.socket) -> None:
        with hub.accept()[0]:
            signal.pthread_kill(main, signal.SIGINT)
            ended.wait()

    ended = threading.Event()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # others may have it ignored
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        thread = threading.Thread(target=asked, args=(hub,))
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            check_models_apart([ModelSpec(name="m", task="chat", source="some/body")])
        ended.set()
        thread.join()
    assert [] == multiprocessing.active_children()


def test_what_is_wrong_with_a_model_is_said_from_there_too() -> None:
    """In the same words as at the start."""
    with pytest.raises(ConfigError, match=r"^x.yaml: models.0.source: model .m.: no directory"):
        check_models_apart([ModelSpec(name="m", task="chat", source="/nowhere")], "x.yaml: ")
    check_models_apart([])
