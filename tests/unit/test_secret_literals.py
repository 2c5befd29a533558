"""Which values are secrets, and which only sound like one."""

from __future__ import annotations

import pytest

from omai_ray.secret_literals import secret_literals


@pytest.mark.parametrize(
    "value",
    [
        {"admin_password": "hunter2"},
        {"redisPassword": "hunter2"},
        {"api-key": "abc"},
        {"database_url": "postgresql://omai:hunter2@db/omai"},
        {"commands": ["export OMAI_ADMIN_PASSWORD=hunter2; serve"]},
        {"env": [{"name": "HF_TOKEN", "value": "hunter2"}]},
        {"note": "AKIAIOSFODNN7EXAMPLE"},
        {"note": "hf_" + "a" * 34},
        {"note": "-----BEGIN RSA PRIVATE KEY-----"},
        {"key": "omai-sk-0123456789abcdef_x"},
    ],
)
def test_a_secret_is_found_and_not_shown(value: object) -> None:
    """Its key and its kind are."""
    (found,) = secret_literals(value)
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    "value",
    [
        {"tokens_per_minute": 40_000, "typical_output_tokens": 256},
        {"pepper_file": "/etc/omai/pepper", "ssh_private_key": "~/.ssh/key.pem"},
        {"HttpTokens": "required", "authOptions": {"mode": "token"}},
        {"password": "$PASSWORD", "token": "${TOKEN}", "api_key": "{{ key }}"},
        {"password": {"valueFrom": {"secretKeyRef": {"name": "omai", "key": "PASSWORD"}}}},
        {"commands": ["RAY_AUTH_MODE=token ray start", "HF_TOKEN=$HF_TOKEN serve"]},
        {"env": [{"name": "HF_TOKEN", "value": "$(OTHER)"}, {"name": "MODE", "value": "token"}]},
        {"database_url": "postgresql://omai@db/omai", "redis_url": "redis://redis:6379/0"},
        {"url": "postgresql://omai:$PASSWORD@db/omai", "password": ""},
    ],
)
def test_a_reference_to_a_secret_is_none(value: object) -> None:
    """A variable, a file, a Secret of Kubernetes, or a word that is like one."""
    assert [] == list(secret_literals(value))
