"""One platform for the experiments that leave it well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.platform import Platform, eventually, running
from tests.ray import conftest as on_ray

tiny_models = on_ray.tiny_models


@pytest.fixture(scope="package")
def running_platform(
    tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Run one platform for these tests; it ends before those of another directory."""
    with running(tmp_path_factory.mktemp("faults"), tiny_models) as platform:
        yield platform


@pytest.fixture
def platform(running_platform: Platform) -> Platform:
    """Return the platform once it is well, whatever the test before did to it."""
    eventually(running_platform.is_ready)
    return running_platform
