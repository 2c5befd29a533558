"""The `omai-ray` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from omai_ray.errors import INTERRUPTED, OMAiError
from omai_ray.leaving import leave


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; errors go to stderr, without a trace."""
    try:
        args = build_parser().parse_args(argv)
        status: int = args.run(args)
    except OMAiError as error:
        print(f"omai-ray: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 141
    except OSError as error:  # such as a full disk behind the standard output
        print(f"omai-ray: {error}", file=sys.stderr)
        return 1
    return status


def run() -> NoReturn:
    """Run one command, and end this process with its status."""
    leave(main())


class _Parser(argparse.ArgumentParser):
    """Tells what it does not know with its own usage, not with that of the whole command."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return the namespace and nothing that is left."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            plain = not any(word.startswith("-") for word in left)
            of_corpus = self.prog.endswith((" embed", " plan", " diff"))
            hint = " (a pattern such as '*.parquet' must be quoted)" if plain and of_corpus else ""
            self.error(f"unrecognized arguments: {' '.join(left)}{hint}")
        return found, left


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    # Here, where an interruption in the middle of these imports ends in no traceback.
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
    from omai_ray.settings import CONFIG_VARIABLE, ENVIRONMENT

    names = ", ".join([CONFIG_VARIABLE, *ENVIRONMENT])
    parser = _Parser(
        prog="omai-ray",
        description="Serve and bulk-run chat and embedding models on Ray, behind the OMAi API.",
        epilog=f"environment: {names} set what the command line leaves open.",
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
