from __future__ import annotations

from typing import cast

import pytest

from deployments import engines
from deployments.engines import HealthyAnswers
from omai_ray.batches.answering import Answered, LineRequest
from omai_ray.errors import ServerError

REQUEST = cast("LineRequest", None)


class Engine:
    """Answers with `status`; has failed where `failed`."""

    def __init__(self, status: int, *, failed: bool) -> None:
        self.status = status
        self.failed = failed

    async def answer(self, request: LineRequest) -> Answered:
        return Answered(self.status, b"{}")

    async def ready(self) -> None:
        if self.failed:
            raise ServerError("the engine's thread is not running")


class Ended(BaseException):
    """In place of the process's end."""


def end() -> None:
    """End the process, as far as a test can."""
    raise Ended


@pytest.mark.parametrize("status", [200, 500, 503])
async def test_answers_of_an_engine_that_lives_are_given(status: int) -> None:
    """Failures too, which are the requests' own."""
    engine = Engine(status, failed=False)
    answers = HealthyAnswers(engine, engine.ready, end)
    assert status == (await answers.answer(REQUEST)).status


@pytest.mark.parametrize("status", [500, 503])
async def test_no_failure_of_an_engine_becomes_an_answer(status: int) -> None:
    """The process ends before it is given."""
    engine = Engine(status, failed=True)
    with pytest.raises(Ended):
        await HealthyAnswers(engine, engine.ready, end).answer(REQUEST)


async def test_an_engine_that_hangs_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is answered by then: it is looked after from time to time."""
    monkeypatch.setattr(engines, "HEALTH_S", 0.0)
    engine = Engine(200, failed=True)
    with pytest.raises(Ended):
        await HealthyAnswers(engine, engine.ready, end).watch()
