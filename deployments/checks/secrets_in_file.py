"""Secrets in a file, whichever kind of file it is."""

from __future__ import annotations

from deployments.checks.documents import Document
from deployments.checks.finding import Findings
from omai_ray.secret_literals import secret_literals


def check_secrets(document: Document, findings: Findings, remedy: str) -> None:
    """Find what should be a reference; the secret itself is never shown."""
    for key, what in secret_literals(document.values):
        findings.add(document.at(key), f"{what} stands in the file", remedy)
