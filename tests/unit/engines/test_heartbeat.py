from __future__ import annotations

import pytest

from omai_ray.engines.heartbeat import Heartbeat
from omai_ray.errors import ServerError


class Clock:
    """A clock that is set."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


def test_an_idle_engine_is_well_for_ever(clock: Clock) -> None:
    """And work that comes after a long rest has its full time."""
    heartbeat = Heartbeat(10, clock)
    clock.now += 3600
    heartbeat.check()
    heartbeat.begin()
    heartbeat.check()


def test_a_busy_engine_is_well_as_long_as_its_steps_end(clock: Clock) -> None:
    """However long its work takes altogether; more work does not put the limit off."""
    heartbeat = Heartbeat(10, clock)
    heartbeat.begin()
    for _ in range(100):
        clock.now += 9
        heartbeat.check()
        heartbeat.beat()
    clock.now += 9
    heartbeat.begin()
    clock.now += 2
    with pytest.raises(ServerError, match="not ended a step in 10 s"):
        heartbeat.check()


def test_an_engine_that_has_done_its_work_is_well(clock: Clock) -> None:
    """Its last step does not count against it."""
    heartbeat = Heartbeat(10, clock)
    heartbeat.begin()
    heartbeat.rest()
    clock.now += 11
    heartbeat.check()
