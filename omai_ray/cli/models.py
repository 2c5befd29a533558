"""`omai-ray models`: what can be served."""

from __future__ import annotations

import argparse

from omai_ray.catalog import availability
from omai_ray.cli.common import Commands, add_json, command, settings_of, show


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands, "models", "list the catalog's models, and whether each can be had", _models
    )
    add_json(parser)


def _models(args: argparse.Namespace) -> int:
    settings = settings_of(args)
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
    show(rows, args.json)
    return 0
