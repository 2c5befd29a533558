"""`omai-ray check`: find what is wrong in configuration files, without a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

from omai_ray.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    summary = "check configuration files, offline"
    parser = commands.add_parser("check", help=summary, description=f"{summary.capitalize()}.")
    parser.epilog = (
        "What a file is, its content tells: settings of the platform, a configuration of Ray "
        "Serve, a cluster of ray up, manifests of Kubernetes. Models are held against the nodes of "
        "all files that are named together. Prints a line for each finding; status 1 if any."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML")
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from deployments.checks import check_files

    findings = check_files(args.files)
    for finding in findings:
        print(finding)
    if not findings:
        print(f"no mistakes found; files read: {len(args.files)}")
    return 1 if findings else 0
