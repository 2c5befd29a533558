"""What a running platform does with signals, and with settings that change."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.platform import Platform, fixed_changes
from omai_ray.errors import ConfigError
from omai_ray.settings import EdgeSettings, Settings, parse_settings


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"files": {"max_bytes": 1}}, "files"),
        ({"telemetry": {"traces": "/spans"}}, "telemetry"),
        ({"telemetry": {"traces_ratio": 1}}, "telemetry"),
        ({"ingress": {"max_body_bytes": 1024}}, "ingress.max_body_bytes"),
        ({"limiter": {"snapshot_s": 9}}, "limiter.snapshot_s"),
    ],
)
def test_a_reload_names_what_needs_a_new_start(changed: dict[str, Any], key: str) -> None:
    """What processes were given when they started would stay as it was."""
    before, after = Settings(), parse_settings(changed, {})
    assert [key] == fixed_changes(before, after)
    with pytest.raises(ConfigError, match=f"^x.yaml: {key}: changed; stop and start for that"):
        Platform(before, "x.yaml: ").reload(after)


@pytest.mark.parametrize(
    "changed",
    [
        {"aliases": {"gpt-4o-mini": "omai-gpt-4"}},
        {"ingress": {"replicas": 2, "cors_origins": ["*"]}},
        {"log_level": "DEBUG", "drain_s": 1, "sessions": {"idle_minutes": 5}},
    ],
)
def test_a_reload_may_change_the_rest(changed: dict[str, Any]) -> None:
    """It is in what Serve deploys anew."""
    before, after = Settings(), parse_settings(changed, {})
    assert [] == fixed_changes(before, after)
    assert EdgeSettings.of(before) == EdgeSettings.of(after)
