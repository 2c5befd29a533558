"""Configuration files as YAML documents, each with what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from omai_ray.errors import ConfigError


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


def read_documents(path: Path) -> list[Document]:
    """Return a file's documents, those inside manifests too. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"{path}: {reason}") from None
    return parse_documents(text, str(path))


def parse_documents(text: str, place: str) -> list[Document]:
    """Return the documents of a text. Raises ConfigError where one is no mapping."""
    try:
        parsed = [values for values in yaml.safe_load_all(text) if values is not None]
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not YAML: {str(error).splitlines()[0]}") from None
    documents: list[Document] = []
    for values in parsed or [{}]:
        if not isinstance(values, dict):
            raise ConfigError(f"{place}: expected keys and values, got a {type(values).__name__}")
        kind = _kind(values)
        if kind is Kind.KUBERNETES:
            name = (values.get("metadata") or {}).get("name", "")
            document = Document(f"{place}: {values['kind']} {name}".rstrip(), kind, values)
            documents += [document, *_inner(document)]
        else:
            documents.append(Document(place, kind, values))
    return documents


def _kind(values: dict[str, Any]) -> Kind:
    if "apiVersion" in values and "kind" in values:
        return Kind.KUBERNETES
    if "available_node_types" in values or "provider" in values or "cluster_name" in values:
        return Kind.CLUSTER
    if "applications" in values or "import_path" in values:
        return Kind.SERVE
    return Kind.PLATFORM


def _inner(document: Document) -> list[Document]:
    """Return what a manifest carries as text: Serve's configuration, files of a ConfigMap."""
    values = document.values
    texts: list[tuple[str, Any]] = []
    if values["kind"] == "RayService":
        texts.append(("spec.serveConfigV2", (values.get("spec") or {}).get("serveConfigV2")))
    elif values["kind"] == "ConfigMap":
        data = values.get("data") or {}
        texts += [(f"data.{name}", data[name]) for name in data if name.endswith((".yaml", ".yml"))]
    found: list[Document] = []
    for key, text in texts:
        if isinstance(text, str):
            found += parse_documents(text, document.at(key))
    return found
