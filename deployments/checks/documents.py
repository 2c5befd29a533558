"""Configuration files as YAML documents, each with what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from deployments.checks.finding import Findings
from omai_ray.settings import StrictLoader, yaml_problem


class Kind(Enum):
    """What a document configures."""

    PLATFORM = "settings of the platform"
    SERVE = "configuration of Ray Serve"
    CLUSTER = "cluster of ray up"
    KUBERNETES = "manifest of Kubernetes"


@dataclass(frozen=True)
class Document:
    """One document. place: the file, and the key in it where the document is inside another."""

    place: str
    kind: Kind
    values: dict[str, Any]

    def at(self, *keys: object) -> str:
        """Return the place of a key of this document."""
        return f"{self.place}: {'.'.join(map(str, keys))}"


def dict_of(value: Any) -> dict[str, Any]:
    """Return a mapping of a file; an empty one for what is none, which its schema finds."""
    return value if isinstance(value, dict) else {}


def dicts_of(value: Any) -> list[dict[str, Any]]:
    """Return the mappings in a list of a file."""
    return [item for item in (value if isinstance(value, list) else []) if isinstance(item, dict)]


def read_documents(path: Path, findings: Findings) -> list[Document]:
    """Return a file's documents, those inside manifests too; find that there are none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        findings.add(str(path), getattr(error, "strerror", None) or "no text")
        return []
    return _parse_documents(text, str(path), findings)


def _parse_documents(text: str, place: str, findings: Findings) -> list[Document]:
    try:
        parsed = [values for values in yaml.load_all(text, StrictLoader) if values is not None]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        findings.add(place, f"not YAML: {yaml_problem(error)}")
        return []
    return [
        document for values in parsed or [{}] for document in documents_of(values, place, findings)
    ]


def documents_of(values: Any, place: str, findings: Findings) -> list[Document]:
    """Return a document, and those inside it where it is a manifest."""
    if not isinstance(values, dict):
        findings.add(place, f"expected keys and values, got a {type(values).__name__}")
        return []
    kind = _kind(values)
    if kind is not Kind.KUBERNETES:
        return [Document(place, kind, values)]
    name = dict_of(values.get("metadata")).get("name", "")
    document = Document(f"{place}: {values['kind']} {name}".rstrip(), kind, values)
    return [document, *_inner(document, findings)]


def _kind(values: dict[str, Any]) -> Kind:
    if "apiVersion" in values and "kind" in values:
        return Kind.KUBERNETES
    if "available_node_types" in values or "provider" in values or "cluster_name" in values:
        return Kind.CLUSTER
    if "applications" in values or "import_path" in values:
        return Kind.SERVE
    return Kind.PLATFORM


def _inner(document: Document, findings: Findings) -> list[Document]:
    """Return what a manifest carries as text: Serve's configuration, files of a ConfigMap."""
    values = document.values
    texts: list[tuple[str, Any]] = []
    if values["kind"] == "RayService":
        texts.append(("spec.serveConfigV2", dict_of(values.get("spec")).get("serveConfigV2")))
    elif values["kind"] == "ConfigMap":
        data = dict_of(values.get("data"))
        texts += [(f"data.{n}", data[n]) for n in data if str(n).endswith((".yaml", ".yml"))]
    found: list[Document] = []
    for key, text in texts:
        if isinstance(text, str):
            found += _parse_documents(text, document.at(key), findings)
    return found
