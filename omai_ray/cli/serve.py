"""`omai-ray serve`: the whole platform on this machine."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from omai_ray.cli.common import Commands, add_state_dir, command, settings_of
from omai_ray.errors import ConfigError
from omai_ray.identity.first_administrator import NAME, make_first_administrator
from omai_ray.settings import Settings, load_settings
from omai_ray.telemetry.logs import configure_logs

_log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "serve", "serve the API on this machine until Ctrl-C", _serve)
    parser.epilog = (
        "Without --config it serves the built-in models: omai-gpt-4 (a small demonstration "
        "model) and text-embedding-ada-002 (all-MiniLM-L6-v2). Real ones: --chat-model "
        "Qwen/Qwen3-0.6B, or a directory. Prints 'ready http://HOST:PORT' once it answers. "
        "SIGHUP has it read its settings again: models that stay the same run on."
    )
    option = parser.add_argument
    option("--host", help="address to listen on (default: 127.0.0.1)")
    option("--port", type=int, help="port to listen on, 0 for any free one (default: 8000)")
    add_state_dir(parser)
    option("--chat-model", metavar="SOURCE", help="serve this hub id or directory as omai-gpt-4")
    option("--embedding-model", metavar="SOURCE",
        help="serve this hub id or directory as text-embedding-ada-002")  # fmt: skip
    option("--alias", action="append", default=[], metavar="NAME=MODEL",
        help="serve MODEL under NAME too; may be repeated")  # fmt: skip
    option("--no-dashboard", action="store_true", help="do without the Ray dashboard")


def _serve(args: argparse.Namespace) -> int:
    where = f"{args.config}: " if args.config else ""
    settings = _serve_settings(args)
    from deployments.platform import (
        Platform,
        check_models,
        check_models_apart,
        check_port,
        serve_until_signal,
    )

    settings = settings.model_copy(update={"port": check_port(settings.host, settings.port)})
    check_models(settings.models, where)
    _make_directory(settings.state_dir)
    if settings.log_file is None:
        settings = settings.model_copy(update={"log_file": settings.state_dir / "omai.log"})
    _check_log_file(settings.log_file, where)
    password = make_first_administrator(settings)
    if password is not None:
        print(
            f"administrator: {NAME}, password: {password}\n"
            "Keep it now: it is not stored, and is not shown again.",
            file=sys.stderr,
        )
    configure_logs(settings.log_level, settings.log_file)  # what came before is for the terminal

    def reload(platform: Platform) -> None:
        try:
            changed = _serve_settings(args)
            check_models_apart(changed.models, where)
            kept: dict[str, Any] = {"log_file": changed.log_file or settings.log_file}
            if changed.port == 0:
                kept["port"] = settings.port
            platform.reload(changed.model_copy(update=kept))
        except ConfigError as error:
            _log.error("not reloaded: %s", error.message)
            print(f"not reloaded: {error.message}", file=sys.stderr, flush=True)
        else:
            _log.info("reloaded: %s", ", ".join(changed.catalog.models))
            print(f"reloaded: {', '.join(changed.catalog.models)}", flush=True)

    def ready(address: str) -> None:
        _log.info("serving %s at %s", ", ".join(settings.catalog.models), address)
        print(f"ready {address}", flush=True)

    def ending(drain_s: float) -> None:
        _log.info("stopping")
        with suppress(OSError):  # who read what is written here may have ended by the same Ctrl-C
            print(
                f"stopping: requests have up to {drain_s:g} s to end; a second signal cuts "
                "them off, and what they used is not recorded",
                file=sys.stderr,
                flush=True,
            )

    serve_until_signal(settings, ready, reload, ending, where)
    _log.info("stopped")
    return 0


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--state-dir {path}: {error.strerror or error}") from None


def _check_log_file(path: Path | None, where: str) -> None:
    if path is not None:
        try:
            path.open("a").close()
        except OSError as error:
            raise ConfigError(f"{where}log_file: {path}: {error.strerror or error}") from None


def _serve_settings(args: argparse.Namespace) -> Settings:
    settings = settings_of(
        args, host=args.host, port=args.port, dashboard=False if args.no_dashboard else None
    )
    values = settings.model_dump()
    for task, source in (("chat", args.chat_model), ("embedding", args.embedding_model)):
        if source is not None:
            _replace_source(values, task, source)
    values["aliases"] |= dict(_alias(text) for text in args.alias)
    return load_settings(None, values, environment={})


def _replace_source(values: dict[str, Any], task: str, source: str) -> None:
    """Make the first model of a task come from elsewhere; a hub id becomes its alias too."""
    model = next((m for m in values["models"] if m["task"] == task), None)
    if model is None:
        raise ConfigError(f"--{task}-model: the catalog has no {task} model to replace")
    model["source"] = source
    if not Path(source).is_dir():
        values["aliases"][source] = model["name"]


def _alias(text: str) -> tuple[str, str]:
    name, separator, model = text.partition("=")
    if not (name and separator and model):
        raise ConfigError(f"--alias: expected NAME=MODEL, got '{text}'")
    return name, model
