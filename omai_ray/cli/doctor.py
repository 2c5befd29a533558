"""`omai-ray doctor`: whether this machine can serve, and how to mend what stands in the way."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from omai_ray.cli.common import Commands, add_json, database_command, settings_of
from omai_ray.errors import ConfigError

if TYPE_CHECKING:
    from omai_ray.cli.diagnosis import Finding


def add(commands: Commands) -> None:
    """Add the command."""
    summary = "check whether this machine can serve, and say how to mend it"
    parser = database_command(commands, "doctor", summary, _doctor)
    parser.epilog = (
        "Checks Python, packages, torch, CPU, GPU, port, state directory, disks, database, Redis "
        "and the models' files. Starts and fetches nothing. Status 1 if a check fails."
    )
    add_json(parser)


def _doctor(args: argparse.Namespace) -> int:
    findings = []
    for finding in _findings(args):
        findings.append(finding)
        if not args.json:
            _show(finding)
    failed = sum(finding.status == "failed" for finding in findings)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(f"{len(findings)} checks, {failed} failed")
    return 1 if failed else 0


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    from omai_ray.cli.diagnosis import Finding, diagnose, diagnose_machine

    machine = list(diagnose_machine())
    yield from machine
    try:
        settings = settings_of(args)
    except ConfigError as error:
        yield Finding("settings", "failed", error.message, "see docs/configuration.md")
        return
    has_torch = any((each.check, each.status) == ("torch", "ok") for each in machine)
    yield from diagnose(settings, has_torch=has_torch)


def _show(finding: Finding) -> None:
    print(f"{finding.status:8}{finding.check}: {finding.found}", flush=True)
    if finding.remedy is not None:
        print(f"{'':8}  -> {finding.remedy}")
