"""The `omai-ray` command."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from omai_ray.catalog import availability
from omai_ray.errors import ConfigError, NotFound, OMAiError
from omai_ray.identity.accounts import Accounts
from omai_ray.identity.peppers import Peppers
from omai_ray.settings import CONFIG_VARIABLE, ENVIRONMENT, Settings, load_settings
from omai_ray.store import Account, ApiKey, Store

Result = TypeVar("Result")
_PIPE_WIDTH = 1000
Commands = Any  # argparse has no public name for what add_subparsers returns
_ENVIRONMENT_HELP = (
    "environment: "
    + ", ".join([CONFIG_VARIABLE, *ENVIRONMENT])
    + " set what the command line leaves open."
)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; errors go to stderr, without a trace."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except OMAiError as error:
        print(f"omai-ray: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="omai-ray",
        description="Serve and bulk-run chat and embedding models on Ray, behind the OMAi API.",
        epilog=_ENVIRONMENT_HELP,
    )
    parser.add_argument("--version", action="version", version=f"omai-ray {version('omai-ray')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_embed(commands)
    _add_keys(commands)
    _add_users(commands)
    _add_models(commands)
    return parser


def _command(
    commands: Commands, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    parser.set_defaults(run=run)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML settings")
    return parser


def _group(commands: Commands, name: str, summary: str) -> Commands:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def _add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where accounts, keys and usage are kept (default: ~/.local/state/omai-ray)",
    )


def _settings(args: argparse.Namespace, **overrides: Any) -> Settings:
    return load_settings(args.config, {"state_dir": getattr(args, "state_dir", None), **overrides})


def _add_serve(commands: Commands) -> None:
    parser = _command(commands, "serve", "serve the API on this machine until Ctrl-C", _serve)
    parser.epilog = (
        "Without --config it serves the built-in models: omai-gpt-4 (a small demonstration "
        "model) and text-embedding-ada-002 (all-MiniLM-L6-v2). Real ones: --chat-model "
        "Qwen/Qwen3-0.6B, or a directory. Prints 'ready http://HOST:PORT' once it answers."
    )
    add = parser.add_argument
    add("--host", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, help="port to listen on, 0 for any free one (default: 8000)")
    _add_state_dir(parser)
    add("--chat-model", metavar="SOURCE", help="serve this hub id or directory as omai-gpt-4")
    add("--embedding-model", metavar="SOURCE",
        help="serve this hub id or directory as text-embedding-ada-002")  # fmt: skip
    add("--alias", action="append", default=[], metavar="NAME=MODEL",
        help="serve MODEL under NAME too; may be repeated")  # fmt: skip
    add("--no-dashboard", action="store_true", help="do without the Ray dashboard")


def _serve(args: argparse.Namespace) -> int:
    settings = _serve_settings(args)
    from deployments.platform import check_models, check_port, serve_until_signal

    settings = settings.model_copy(update={"port": check_port(settings.host, settings.port)})
    check_models(settings.models)
    _make_directory(settings.state_dir)
    if settings.log_file is None:
        settings = settings.model_copy(update={"log_file": settings.state_dir / "omai.log"})
    serve_until_signal(settings, lambda address: print(f"ready {address}", flush=True))
    return 0


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--state-dir {path}: {error.strerror or error}") from None


def _serve_settings(args: argparse.Namespace) -> Settings:
    settings = _settings(
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


def _add_embed(commands: Commands) -> None:
    from pipelines.embed_corpus import add_arguments

    parser: argparse.ArgumentParser = commands.add_parser(
        "embed",
        help="embed a text column of a parquet corpus",
        description="Embed a text column of a parquet corpus with a model of the catalog, the same "
        "code and weights that serve requests. Stop it when you like: the same command resumes.",
    )
    parser.set_defaults(run=_embed)
    add_arguments(parser)


def _embed(args: argparse.Namespace) -> int:
    from pipelines.embed_corpus import run

    return run(args, load_settings(args.config))


def _add_keys(commands: Commands) -> None:
    group = _group(commands, "keys", "create, list and revoke API keys")
    create = _command(group, "create", "create an API key and show it, this once", _create_key)
    create.add_argument(
        "--tier",
        help="tier of the new account that the key is for: basic, pro, enterprise, or your own",
    )
    create.add_argument("--account", help="an account's name or id; made if new (with --tier)")
    create.add_argument("--name", default="default", help="a label to tell keys apart")
    create.add_argument("--quiet", action="store_true", help="print the key alone")
    _add_state_dir(create)
    listing = _command(group, "list", "list the API keys, without their secrets", _list_keys)
    listing.add_argument("--json", action="store_true", help="print JSON")
    _add_state_dir(listing)
    revoke = _command(group, "revoke", "revoke an API key, within 5 s on every replica", _revoke)
    revoke.add_argument("key_id", metavar="ID", help="the key's id, as `keys list` shows it")
    _add_state_dir(revoke)


def _create_key(args: argparse.Namespace) -> int:
    async def create(accounts: Accounts) -> tuple[str, str]:
        account = await _account_for_key(accounts, args.account, args.tier)
        _, key = await accounts.create_key(account.id, args.name)
        return account.name, key

    account, key = _with_accounts(args, create)
    if args.quiet:
        print(key)
    else:
        print(f"account  {account}\nkey      {key}\n\nKeep it now: it cannot be shown again.")
    return 0


async def _account_for_key(accounts: Accounts, name: str | None, tier: str | None) -> Account:
    """Return the named account, or a new one of that tier."""
    if name is not None:
        try:
            account = await accounts.get_account(name)
        except NotFound:
            if tier is None:
                raise
        else:
            if tier not in (None, account.tier):
                raise ConfigError(f"account '{name}' is of tier '{account.tier}', not '{tier}'")
            return account
    if tier is None:
        raise ConfigError("keys create: give --tier for a new account, or --account")
    return await accounts.create_account(name, tier)


def _list_keys(args: argparse.Namespace) -> int:
    async def read(accounts: Accounts) -> tuple[list[ApiKey], dict[str, Account]]:
        owners = {account.id: account for account in await accounts.list_accounts()}
        return await accounts.list_keys(), owners

    keys, owners = _with_accounts(args, read)
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "account": owners[key.account_id].name,
            "tier": owners[key.account_id].tier,
            "last_four": key.last_four,
            "created": _date(key.created),
            "last_used": _date(key.last_used),
            "revoked": _date(key.revoked_at),
        }
        for key in keys
    ]
    _show(rows, args.json)
    return 0


def _revoke(args: argparse.Namespace) -> int:
    key = _with_accounts(args, lambda accounts: accounts.revoke_key(args.key_id))
    print(f"revoked {key.id} ({key.name})")
    return 0


def _add_users(commands: Commands) -> None:
    group = _group(commands, "users", "create and list the users who may log in")
    create = _command(
        group, "create", "create a user with an account of the same name", _create_user
    )
    create.add_argument("name", metavar="NAME")
    create.add_argument("--tier", required=True, help="tier of the user's account")
    create.add_argument("--password-stdin", action="store_true",
        help="read the password from standard input (default: ask for it)")  # fmt: skip
    _add_state_dir(create)
    listing = _command(group, "list", "list the users", _list_users)
    listing.add_argument("--json", action="store_true", help="print JSON")
    _add_state_dir(listing)


def _create_user(args: argparse.Namespace) -> int:
    if args.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = _ask_password(args.name)
    user = _with_accounts(
        args, lambda accounts: accounts.create_user(args.name, password, args.tier)
    )
    print(f"created user {user.name}, {user.role} of an account of the same name ({args.tier})")
    return 0


def _ask_password(name: str) -> str:
    try:
        return getpass.getpass(f"Password for {name}: ")
    except EOFError:
        raise ConfigError("users create: no password was given; see --password-stdin") from None


def _list_users(args: argparse.Namespace) -> int:
    users = _with_accounts(args, lambda accounts: accounts.list_users())
    _show([{"name": u.name, "role": u.role, "created": _date(u.created)} for u in users], args.json)
    return 0


def _add_models(commands: Commands) -> None:
    parser = _command(
        commands, "models", "list the catalog's models, and whether each can be had", _models
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _models(args: argparse.Namespace) -> int:
    settings = _settings(args)
    rows = []
    for spec in settings.catalog.models.values():
        aliases = [alias for alias, name in settings.aliases.items() if name == spec.name]
        rows.append(
            {
                "name": spec.name,
                "task": spec.task,
                "source": spec.source,
                "aliases": ", ".join(aliases),
                "available": availability(spec),
            }
        )
    _show(rows, args.json)
    return 0


def _with_accounts(
    args: argparse.Namespace, use: Callable[[Accounts], Coroutine[Any, Any, Result]]
) -> Result:
    """Run `use` over the accounts of the state directory that args name."""
    settings = _settings(args)

    async def run() -> Result:
        peppers = Peppers.load(settings.state_dir)
        store = await Store.open(settings.sqlalchemy_url)
        try:
            return await use(Accounts(store, peppers, settings.tiers))
        finally:
            await store.close()

    return asyncio.run(run())


def _date(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0] if rows else ["nothing yet"]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
