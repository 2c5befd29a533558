"""`omai-ray completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omai_ray.cli.common import Commands

SHELLS = ("bash", "zsh", "fish")


def add(commands: Commands, build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command. build_parser: makes the parser that is completed."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "completion",
        help="print a script that completes this command in a shell",
        description="Print a script that completes commands, options and files in a shell.",
        epilog='bash: eval "$(omai-ray completion bash)" in ~/.bashrc. zsh: the same after '
        "compinit in ~/.zshrc. fish: omai-ray completion fish | source in config.fish.",
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=lambda args: _print(build_parser(), args.shell))


def _print(parser: argparse.ArgumentParser, shell: str) -> int:
    import shtab

    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Have options and arguments that are paths completed with files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, files)
        elif action.type is Path:
            action.complete = files  # type: ignore[attr-defined]
