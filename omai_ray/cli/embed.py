"""`omai-ray embed`: a parquet corpus in bulk."""

from __future__ import annotations

import argparse

from omai_ray.cli.common import Commands
from omai_ray.settings import load_settings


def add(commands: Commands) -> None:
    """Add the command."""
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
