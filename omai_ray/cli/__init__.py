"""The `omai-ray` command."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version

from omai_ray.cli import (
    accounts,
    batch,
    check,
    completion,
    corpus,
    database,
    doctor,
    embed,
    keys,
    models,
    records,
    serve,
    top,
    users,
)
from omai_ray.errors import OMAiError
from omai_ray.settings import CONFIG_VARIABLE, ENVIRONMENT

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
    except OSError as error:  # such as a full disk behind the standard output
        print(f"omai-ray: {error}", file=sys.stderr)
        return 1
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
    for part in (
        serve,
        top,
        check,
        doctor,
        embed,
        corpus,
        batch,
        keys,
        accounts,
        users,
        records,
        models,
        database,
    ):
        part.add(commands)
    completion.add(commands, build_parser)
    return parser
