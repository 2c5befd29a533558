"""Secrets that stand in a configuration file as they are, where a reference belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|passphrase|secret|token|credential|api_?key|access_?key|secret_?key"
    r"|private_?key|pepper)$"
)
# A reference to a value elsewhere: a variable, a file, a template's expression.
_REFERENCE = re.compile(r"^\s*(\$|\{\{|/|~|\./|<)")
_URL_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:(?P<password>[^/\s@]+)@")
_ASSIGNMENT = re.compile(r"\b(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>[^\s;&|]+)")
_SHAPES = {
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an OMAi key": re.compile(r"\bomai-sk-[0-9A-Za-z_-]{16,}"),
    "an API key": re.compile(r"\bsk-[0-9A-Za-z_-]{20,}"),
    "a GitHub token": re.compile(r"\bgh[opsu]_[0-9A-Za-z]{30,}"),
    "a Hugging Face token": re.compile(r"\bhf_[0-9A-Za-z]{30,}"),
}


def secret_literals(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key of each secret below a value of YAML, and what it is; never the secret."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from secret_literals(inner, f"{key}.{name}" if key else str(name))
        # Kubernetes: {name: PASSWORD, value: …} of an environment, and password: {value: …}.
        name, given = value.get("name", key.rsplit(".", 1)[-1]), value.get("value")
        if isinstance(name, str) and isinstance(given, str) and _is_secret(name, given):
            yield f"{key}.value", f"the value of {name}"
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from secret_literals(inner, f"{key}.{place}")
    elif isinstance(value, str):
        what = _what(key.rsplit(".", 1)[-1], value)
        if what is not None:
            yield key, what


def _what(name: str, text: str) -> str | None:
    if _is_secret(name, text):
        return "a secret"
    for what, shape in _SHAPES.items():
        if shape.search(text):
            return what
    for found in _URL_PASSWORD.finditer(text):
        if not _REFERENCE.match(found["password"]):
            return "an address with its password"
    for found in _ASSIGNMENT.finditer(text):
        if _is_secret(found["name"], found["value"].strip("'\"")):
            return f"the value of {found['name']}"
    return None


def _is_secret(name: str, text: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    return bool(text and _SECRET_KEY.search(words) and not _REFERENCE.match(text))
