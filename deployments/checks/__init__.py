"""`omai-ray check`: what is wrong in configuration files, found without a cluster or a network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deployments.checks import kubernetes, platform_settings, ray_cluster, serve_config
from deployments.checks.capacity import check_capacity
from deployments.checks.documents import Document, Kind, read_documents
from deployments.checks.finding import Finding, Findings

_CHECKS = {
    Kind.PLATFORM: platform_settings.check,
    Kind.SERVE: serve_config.check,
    Kind.CLUSTER: ray_cluster.check,
    Kind.KUBERNETES: kubernetes.check,
}
__all__ = ["Finding", "check_documents", "check_files"]


def check_files(paths: Iterable[Path]) -> list[Finding]:
    """Return what is wrong, file by file, and between the models and the nodes of all of them.

    What each file is, its content tells. One that cannot be read is a finding too.
    """
    findings = Findings()
    documents: list[Document] = []
    for path in paths:
        documents += read_documents(path, findings)
    check_documents(documents, findings)
    return findings.items


def check_documents(documents: Iterable[Document], findings: Findings) -> None:
    """Find what is wrong in each document, and between them."""
    documents = list(documents)
    for document in documents:
        _CHECKS[document.kind](document, findings)
    check_capacity(documents, findings)
