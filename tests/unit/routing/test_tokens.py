from __future__ import annotations

import random

from omai_ray.routing.tokens import QueuedTokens


def test_the_fewest_tokens_come_first_not_the_fewest_requests() -> None:
    """One request of 8,000 tokens is more than ten of 20."""
    queued = QueuedTokens()
    queued.begin("a", 8000)
    for _ in range(10):
        queued.begin("b", 20)
    assert queued.rank({"a": 1, "b": 10}) == ["b", "a"]
    queued.end("a", 8000)
    assert queued.rank({"a": 0, "b": 10}) == ["a", "b"]


def test_requests_of_others_count_as_the_mean_of_ones_own() -> None:
    """Serve says how many requests a replica is at, and this process knows its own."""
    queued = QueuedTokens()
    queued.begin("a", 100)
    assert queued.rank({"a": 1, "b": 2}) == ["a", "b"]
    assert queued.rank({"a": 3, "b": 1}) == ["b", "a"]


def test_equals_are_taken_in_turns_by_chance() -> None:
    """So that processes that begin do not all begin with the same replica."""
    queued = QueuedTokens(random.Random(1))
    firsts = {queued.rank({"a": 0, "b": 0})[0] for _ in range(20)}
    assert firsts == {"a", "b"}


def test_nothing_is_left_of_what_has_ended() -> None:
    """A replica that is gone leaves no count behind."""
    queued = QueuedTokens()
    queued.begin("a", 5)
    queued.begin("a", 7)
    queued.end("a", 5)
    queued.end("a", 7)
    assert not queued._tokens
    assert not queued._requests
