from __future__ import annotations

from omai_ray.autoscaling.load import LoadMeter, ReplicaLoad, ReplicaMeter


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_request_waits_until_its_answer_begins_and_runs_until_it_ends() -> None:
    """Queued tokens leave the queue with the first token; running time is counted throughout."""
    clock = Clock()
    meter = LoadMeter(8, clock)
    with meter.request(100) as work:
        assert (1, 100.0) == (meter.load(0.0).queued, meter.load(0.0).queued_tokens)
        clock.now = 2.0
        work.answer(1, cached_tokens=40)
        load = meter.load(0.0)
        assert (0, 0.0, 61.0, 2.0) == (
            load.queued,
            load.queued_tokens,
            load.done_tokens,
            load.running_s,
        )
        clock.now = 3.0
        work.answer(9)
    load = meter.load(7.0)
    assert (7.0, 70.0, 3.0) == (load.at_s, load.done_tokens, load.running_s)
    assert (1, 10.0) == (load.ended, load.ended_tokens)


def test_a_request_that_leaves_before_its_answer_leaves_the_queue() -> None:
    """Nothing stays behind of a caller that goes away."""
    meter = LoadMeter(8, Clock())
    try:
        with meter.request(100, answers=2):
            raise TimeoutError
    except TimeoutError:
        pass
    load = meter.load(0.0)
    assert (0, 0.0, 2, 2) == (load.queued, load.queued_tokens, load.asked, load.ended)


def test_requests_beyond_a_full_batch_do_not_run() -> None:
    """Two of three requests run where two fill the batch."""
    clock = Clock()
    meter = LoadMeter(2, clock)
    with meter.request(1), meter.request(1), meter.request(1):
        clock.now = 10.0
        assert 20.0 == meter.load(0.0).running_s


def test_cached_prompts_are_expected_to_cost_less() -> None:
    """Where prompts are mostly cached, so is what the next is expected to take."""
    meter = LoadMeter(8, Clock())
    for _ in range(200):
        with meter.request(100) as work:
            work.answer(1, cached_tokens=90)
    before = meter.load(0.0).asked_tokens
    with meter.request(100):
        assert 10 <= meter.load(0.0).asked_tokens - before < 11


def test_of_a_batch_nothing_counts_but_that_it_is_there() -> None:
    """Neither queued nor computed tokens, whether it is answered or leaves."""
    clock = Clock()
    meter = ReplicaMeter(8, clock)
    with meter.request(100, 2, priority="batch") as work:
        assert ReplicaLoad(0.0, batch=1) == meter.load(0.0)
        clock.now = 3.0
        work.answer(5)
        assert ReplicaLoad(0.0, batch=1) == meter.load(0.0)
        with meter.request(10, priority="online"):
            load = meter.load(0.0)
            assert (1, 1, 10.0) == (load.batch, load.queued, load.queued_tokens)
    load = meter.load(0.0)
    assert (0, 0, 1, 1) == (load.batch, load.queued, load.asked, load.ended)
