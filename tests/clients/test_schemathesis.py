"""Requests that schemathesis makes up from the API's documents, ours and OpenAI's.

Each must be answered as documented: never by a failure of the server; refusals in the envelope.
`openai_slice.json` is OpenAI's published document, of the endpoints that there are here: without
descriptions and examples, and with null written as OpenAPI 3.1 writes it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.api.conftest import Api
from tests.clients.conftest import Live
from tests.clients.environments import PROGRAMS, clients_environment

SLICE = Path(__file__).parent / "openai_slice.json"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "keeps_the_envelope",
    "keeps_openais_schemas",
)


def schemathesis(live: Live, key: str, document: str, *options: str) -> None:
    """Run it over a document, the same requests each time. Fail with its report where it does."""
    commands = clients_environment()
    command = [
        str(commands / "schemathesis"),
        "run",
        document,
        "--header",
        f"Authorization: Bearer {key}",
        "--checks",
        ",".join(CHECKS),
        "--generation-deterministic",
        "--continue-on-failure",
        "--request-timeout",
        "60",
        "--no-color",
        *options,
    ]
    environment = {
        "PATH": str(commands),
        "PYTHONPATH": str(PROGRAMS),
        "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def admin_key(live: Live) -> str:
    """Return a key that may do everything, of an account of its own."""

    async def create(api: Api) -> str:
        account, _ = await api.key("enterprise")
        return (await api.admin.keys.create(account, role="admin"))[1]

    return live.run(create)


@pytest.mark.timeout(600)
def test_every_answer_is_as_our_own_document_says(live: Live) -> None:
    """Every endpoint, valid requests and invalid ones; successes keep OpenAI's schemas too."""
    url = f"{live.url}/openapi.json"
    phases = ("--phases", "examples,coverage,fuzzing")
    schemathesis(live, admin_key(live), url, *phases, "--max-examples", "15")


@pytest.mark.timeout(600)
def test_what_openai_accepts_is_answered_or_refused_in_the_envelope(live: Live) -> None:
    """Requests of OpenAI's document, many of whose fields are refused here by name."""
    only = ("--phases", "fuzzing", "--max-examples", "60")
    schemathesis(live, live.key, str(SLICE), "--url", live.base_url, *only)
