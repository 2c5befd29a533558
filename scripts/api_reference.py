"""The API's reference as a page of Markdown, from the server's own OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from omai_ray.api.app import Services, create_app
from omai_ray.api.backends import ServedModels
from omai_ray.batches.batches import Batches
from omai_ray.catalog import Catalog
from omai_ray.embedding_jobs.jobs import EmbeddingJobs
from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.files import Contents, Files
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.registry import Registry
from omai_ray.ledger import UsageLedger
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.quota.gate import Gate
from omai_ray.settings import Settings
from omai_ray.telemetry.recorder import Recorder

_REFERENCE = "#/components/schemas/"
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} keys",
    "pattern": "`{}`",
}

Document = dict[str, Any]


def read_document() -> Document:
    """Return what `/openapi.json` answers, of an application that serves no model."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_ask(Settings(state_dir=Path(folder))))


async def _ask(settings: Settings) -> Document:
    registry = await Registry.open(settings)
    contents = Contents.at(settings.files_location)
    try:
        transport = httpx.ASGITransport(create_app(_services(settings, registry, contents)))
        async with httpx.AsyncClient(transport=transport, base_url="http://reference") as client:
            answer = await client.get("/openapi.json")
        document: Document = answer.raise_for_status().json()
        return document
    finally:
        contents.close()
        await registry.close()


def _services(settings: Settings, registry: Registry, contents: Contents) -> Services:
    ledger, files = UsageLedger(registry.store), Files(registry.store, contents)
    return Services(
        models=ServedModels(Catalog((), {}), {}, {}),
        gate=Gate(InProcessBuckets(), settings.tiers, MonthlyBudgets(ledger.tokens_in_month)),
        ledger=ledger,
        authenticator=Authenticator(registry, settings.sessions),
        administration=Administration(registry),
        tiers=settings.tiers,
        sessions=settings.sessions,
        files=files,
        batches=Batches(registry.store, files),
        embedding_jobs=EmbeddingJobs(registry.store, files, AllowedLocations(())),
        file_limits=settings.files,
        ingress=settings.ingress,
        trusted_proxies=(),
        proxy_echoes_id=False,
        recorder=Recorder(),
        close=registry.close,
    )


def render(document: Document) -> str:
    """Return the page: endpoints by tag, then every object that they name."""
    lines = [f"# {document['info']['title']}", "", document["info"].get("description", "")]
    lines += ["", "A running server has the same at `/docs`, and as `/openapi.json`."]
    tag = None
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["tags"][0] != tag:
                tag = operation["tags"][0]
                lines += ["", f"## {tag}"]
            lines += ["", f"### {method.upper()} {path}", "", *_operation(operation)]
    lines += ["", "## Objects"]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += ["", f"### {name}", "", *_object(schema)]
    return "\n".join(lines) + "\n"


def _operation(operation: Document) -> Iterator[str]:
    yield f"{operation['summary']}."
    parameters = operation.get("parameters", [])
    if parameters:
        yield ""
        yield from _table(
            (f"{p['name']} ({p['in']})", p["schema"], p.get("required", False), p)
            for p in parameters
        )
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from ("", f"Body (`{kind}`): {_type(content['schema'])}")
        if "example" in content:
            shown = json.dumps(content["example"], ensure_ascii=False)
            yield from ("", "```json", shown, "```")
    for status, answer in operation["responses"].items():
        for kind, content in answer.get("content", {}).items():
            if status.startswith("2"):
                named = _type(content.get("schema", {}))
                yield from ("", f"Answer {status} (`{kind}`): {named}")
    failures = [status for status in operation["responses"] if not status.startswith("2")]
    if failures:
        yield from ("", f"Failures: {', '.join(sorted(failures))}")


def _object(schema: Document) -> Iterator[str]:
    if "description" in schema:
        yield from (_plain(schema["description"]), "")
    properties = schema.get("properties", {})
    if properties:
        required = schema.get("required", ())
        yield from _table((n, inner, n in required, inner) for n, inner in properties.items())
    else:
        yield _type(schema)


def _table(rows: Any) -> Iterator[str]:
    """Give a table. rows: name, schema, whether it is required, and what describes it."""
    yield "| field | type | |"
    yield "|---|---|---|"
    for name, schema, required, described in rows:
        notes = ["required"] if required else []
        if schema.get("default") is not None:
            notes.append(f"default `{json.dumps(schema['default'], ensure_ascii=False)}`")
        notes.append(_plain(described.get("description", "")))
        yield f"| `{name}` | {_type(schema)} | {'; '.join(filter(None, notes))} |"


def _type(schema: Document) -> str:
    """Return a schema in a line: its type, bounds, and links to the objects that it names."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REFERENCE)
        return f"[{name}](#{name.lower()})"
    choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if choices:
        return " or ".join(dict.fromkeys(map(_type, choices)))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        kind = f"array of {_type(schema.get('items', {}))}"
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return _plain(f"{kind} ({', '.join(bounds)})" if bounds else kind)


def _plain(text: str) -> str:
    """Return a text that a table's cell can hold."""
    return " ".join(text.split()).replace("|", "\\|")
