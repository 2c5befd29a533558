from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError
from pipelines.embed_corpus import add_arguments
from pipelines.job import EmbedJob
from pipelines.pool import PoolSize, size_pool

Job = Callable[..., EmbedJob]
FREE = {"CPU": 8.0, "GPU": 2.0}
GPU_MODEL = ModelSpec(name="g", task="embedding", source=".", num_cpus=1, num_gpus=0.5)


@pytest.mark.parametrize(
    ("options", "own", "pool"),
    [
        ({}, False, PoolSize(8, 8, 8)),
        ({"leave_cpus": 3}, False, PoolSize(5, 5, 5)),
        ({"actors": 3}, False, PoolSize(3, 3, 3)),
        ({"actors": 12}, False, PoolSize(12, 12, 12)),
        ({"actors": 12}, True, PoolSize(8, 8, 8)),
        ({"actors": 12, "leave_cpus": 2.5}, False, PoolSize(5, 5, 5)),
        ({"actors": 2, "max_actors": 4}, False, PoolSize(2, 4, 4)),
        ({"actors": 2, "max_actors": 32}, False, PoolSize(2, 8, 32)),
        ({"actors": 2, "max_actors": 32}, True, PoolSize(2, 8, 8)),
        ({"actors": 2, "max_actors": 32, "leave_cpus": 7}, False, PoolSize(1, 1, 1)),
        ({"model": GPU_MODEL}, False, PoolSize(4, 4, 4)),
        ({"model": GPU_MODEL, "leave_gpus": 1}, False, PoolSize(2, 2, 2)),
        ({"model": GPU_MODEL, "leave_cpus": 7}, False, PoolSize(1, 1, 1)),
    ],
)
def test_a_pool_fits_what_is_free_and_keeps_what_is_to_be_left(
    make_job: Job, options: dict[str, Any], own: bool, pool: PoolSize
) -> None:
    """More than fits is asked for only of a cluster that may grow, and of which nothing is kept."""
    assert size_pool(make_job(**options), [FREE], own=own) == pool


def test_an_actor_is_on_one_node(make_job: Job) -> None:
    """What two nodes have free together is of no use to it."""
    model = GPU_MODEL.model_copy(update={"num_cpus": 4, "placement": {"pool": "a"}})
    nodes = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}, {"CPU": 9.0, "GPU": 1.0}]
    assert size_pool(make_job(model=model), nodes, own=False) == PoolSize(2, 2, 2)
    with pytest.raises(ConfigError, match=r"9 CPU and 1 GPU free; .* the labels pool=a"):
        size_pool(make_job(model=model), nodes[:2], own=False)


@pytest.mark.parametrize(
    ("options", "own", "message"),
    [
        ({"leave_cpus": 8}, False, "8 CPU and 2 GPU free, --leave-cpus 8 of them are left; a copy"),
        ({"actors": 4, "leave_cpus": 8}, False, "needs 1 CPU on one node. Free some$"),
        ({"actors": 4, "model": GPU_MODEL, "leave_gpus": 2}, False, "needs 0.5 GPU and 1 CPU"),
    ],
)
def test_a_pool_without_room_for_one_actor_is_refused(
    make_job: Job, options: dict[str, Any], own: bool, message: str
) -> None:
    """It says what is free, what is kept, and what would be needed."""
    with pytest.raises(ConfigError, match=message):
        size_pool(make_job(**options), [FREE], own=own)


def test_actors_may_wait_on_a_shared_cluster_where_nothing_is_kept(make_job: Job) -> None:
    """Not on one of the job's own, where nothing would ever become free."""
    busy = {"CPU": 0.0}
    assert size_pool(make_job(actors=2, max_actors=4), [busy], own=False) == PoolSize(2, 2, 4)
    with pytest.raises(ConfigError, match="0 CPU"):
        size_pool(make_job(actors=2), [busy], own=True)


def test_there_are_no_more_actors_than_units() -> None:
    """Not one that would have nothing to do."""
    assert PoolSize(2, 4, 8).fit(3) == PoolSize(2, 3, 3)


@pytest.mark.parametrize(
    ("given", "actors"), [("4", (4, None)), ("2:8", (2, 8)), (None, (None, None))]
)
def test_actors_are_a_number_or_the_least_and_the_most(
    given: str | None, actors: tuple[int | None, int | None]
) -> None:
    """With a colon between."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["in", "out", "--column", "text", *(["--actors", given] if given else [])]
    assert parser.parse_args(words).actors == actors


@pytest.mark.parametrize("given", ["", "2:", ":8", "two", "1:2:3"])
def test_other_words_for_actors_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what is expected."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["in", "out", "--column", "text", "--actors", given])
    assert f"expected such as 4 or 2:8, got '{given}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actors": 4, "max_actors": 2}, "actors is 4 to 2"),
        ({"actors": 0, "max_actors": 2}, "actors is 0"),
        ({"leave_cpus": -1}, "leave-cpus is -1"),
        ({"leave_gpus": float("nan")}, "leave-gpus is nan"),
        ({"price_per_hour": -0.5}, "price-per-hour is -0.5"),
    ],
)
def test_a_pool_or_price_that_cannot_be_is_refused_by_name(
    make_job: Job, changes: dict[str, Any], message: str
) -> None:
    """When the job is made."""
    with pytest.raises(ConfigError, match=message):
        make_job(**changes)
