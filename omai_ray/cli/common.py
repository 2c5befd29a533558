"""What the commands share: their options, the database they work on, and what they print."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from omai_ray.errors import ConfigError
from omai_ray.identity.actor import Actor
from omai_ray.identity.administration import Administration
from omai_ray.identity.paging import Page
from omai_ray.identity.registry import Registry
from omai_ray.settings import Settings, load_settings
from omai_ray.store.engine import is_there, parse_url

Result = TypeVar("Result")
Item = TypeVar("Item")
Commands = Any  # argparse has no public name for what add_subparsers returns
_PIPE_WIDTH = 1000
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def command(
    commands: Commands, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a command that reads the settings."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    parser.set_defaults(run=run)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML settings")
    return parser


def database_command(
    commands: Commands, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a command that works on the database of the accounts."""
    parser = command(commands, name, summary, run)
    add_state_dir(parser)
    return parser


def group(commands: Commands, name: str, summary: str) -> Commands:
    """Add a command that has commands."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """Add --state-dir."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where accounts, keys and usage are kept "
        "(default: OMAI_STATE_DIR, or ~/.local/state/omai-ray)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_change(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """Add an option that changes nothing where it is left out; see `changes`."""
    parser.add_argument(name, default=argparse.SUPPRESS, **options)


def add_count(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """Add an option for a limit."""
    add_change(parser, name, type=_count_or_none, metavar="N", help=f"{help_text}, or 'none'")


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the option of a list of models."""
    add_change(
        parser,
        "--models",
        type=_names,
        metavar="NAMES",
        help="the models that may be used, with commas between, or 'all'",
    )


def check_limit(args: argparse.Namespace) -> None:
    """Raise ConfigError for a --limit that shows nothing."""
    if args.limit < 1:
        raise ConfigError(f"--limit: expected 1 or more, got {args.limit}")


def changes(args: argparse.Namespace, *names: str) -> Any:
    """Return which of these options were given, and as what."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def settings_of(args: argparse.Namespace, **overrides: Any) -> Settings:
    """Return the settings that the arguments name."""
    return load_settings(args.config, {"state_dir": getattr(args, "state_dir", None), **overrides})


def with_administration(
    args: argparse.Namespace,
    use: Callable[[Administration], Coroutine[Any, Any, Result]],
    *,
    makes: bool = False,
) -> Result:
    """Run `use` over the accounts of the database that args name. makes: the database as well."""
    return with_registry(args, lambda registry: use(Administration(registry)), makes=makes)


def check_database(settings: Settings) -> None:
    """Raise ConfigError where there is none yet, so that a mistaken directory is not taken."""
    if not is_there(parse_url(settings.sqlalchemy_url)):
        where = "at `database_url`" if settings.database_url else f"in {settings.state_dir}"
        raise ConfigError(
            f"no database {where}: is it another --state-dir? "
            "`omai-ray serve` makes one, and so do the commands that create"
        )


def with_registry(
    args: argparse.Namespace,
    use: Callable[[Registry], Coroutine[Any, Any, Result]],
    *,
    makes: bool = False,
) -> Result:
    """Run `use` over the database that args name, as the system's user. makes: that as well.

    Raises ConfigError where there is none and it makes none.
    """
    settings = settings_of(args)
    if not makes:
        check_database(settings)

    async def run() -> Result:
        registry = await Registry.open(settings, Actor(f"cli:{_system_user()}"))
        try:
            return await use(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


async def everything(read: Callable[[str | None], Awaitable[Page[Item]]]) -> list[Item]:
    """Return the entries of all pages. read: what follows the entry of that id -> a page."""
    found: list[Item] = []
    after = None
    while True:
        page = await read(after)
        found += page.items
        if not page.has_more:
            return found
        after = str(page.items[-1].id)  # type: ignore[attr-defined]


def ask_password(args: argparse.Namespace, name: str) -> str:
    """Return a password: a line of standard input, or what somebody types."""
    if args.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    try:
        password = getpass.getpass(f"Password for {name}: ")
        again = getpass.getpass("The same again: ")
    except EOFError:
        raise ConfigError("no password was given; see --password-stdin") from None
    if again != password:
        raise ConfigError("the two passwords differ; nothing was changed")
    return password


def add_password(parser: argparse.ArgumentParser) -> None:
    """Add --password-stdin."""
    parser.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password from standard input (default: ask for it)",
    )


def duration_s(text: str) -> float:
    """Return the seconds of `90s`, `15m`, `24h` or `30d`."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected such as 90s, 15m, 24h or 30d, got '{text}'")
    return float(int(found[1]) * _SECONDS[found[2]])


def moment(text: str) -> float:
    """Return the seconds since the epoch of a date, or date and time, UTC where it has no zone."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected such as 2026-11-24 or 2026-11-24T12:00, got '{text}'"
        ) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def date(seconds: float | None) -> str | None:
    """Return a time as people read it."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0] if rows else ["nothing yet"]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else escape(_text(value)) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"  # without what binary fractions cannot say
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)


def _count_or_none(text: str) -> int | None:
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or 'none', got '{text}'") from None


def _names(text: str) -> list[str] | None:
    return None if text == "all" else [name.strip() for name in text.split(",") if name.strip()]


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
