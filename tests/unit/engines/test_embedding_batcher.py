from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.engines.embedding.batcher import EmbeddingBatcher
from omai_ray.engines.embedding.engine import STEP_TOKENS, EmbeddingEngine, Vectors
from omai_ray.engines.embedding.lanes import Lanes
from omai_ray.engines.embedding.packing import Ids
from omai_ray.errors import InvalidRequest, Overloaded, ServerError
from tests.checkpoints import save_embedding_checkpoint
from tests.programs import niceness


class Held(EmbeddingEngine):
    """An engine that waits for permission, and tells what it was given."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.batches: list[list[list[int]]] = []
        self.entered = threading.Semaphore(0)
        self.allowed = threading.Event()
        self.broken = False
        self.poison: int | None = None

    def embed_arrays(self, arrays: list[Ids]) -> Vectors:
        self.batches.append([ids.tolist() for ids in arrays])
        self.entered.release()
        self.allowed.wait()
        if self.broken or any(self.poison in ids for ids in arrays):
            raise RuntimeError("canary-in-exception")
        return super().embed_arrays(arrays)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Held:
    """Return a small random model."""
    directory = save_embedding_checkpoint(tmp_path_factory.mktemp("embedding"))
    return Held(ModelSpec(name="m", task="embedding", source=str(directory)))


@pytest.fixture
def engine(loaded: Held) -> Iterator[Held]:
    """Return it as new; it runs on at the end, so that no thread stays behind."""
    loaded.batches, loaded.broken, loaded.poison = [], False, None
    loaded.entered, loaded.allowed = threading.Semaphore(0), threading.Event()
    yield loaded
    loaded.allowed.set()


async def busy(batcher: EmbeddingBatcher, engine: Held) -> asyncio.Task[Vectors]:
    """Return a request that the engine is held at: what comes now is queued."""
    task = asyncio.create_task(batcher.embed([[5]]))
    await asyncio.to_thread(engine.entered.acquire)
    return task


async def queued(
    batcher: EmbeddingBatcher, *requests: list[list[int]]
) -> list[asyncio.Task[Vectors]]:
    """Return requests that wait, in their order."""
    tasks = [asyncio.create_task(batcher.embed(inputs)) for inputs in requests]
    await asyncio.sleep(0)
    return tasks


async def test_what_queues_meanwhile_is_one_batch_and_each_gets_its_own(engine: Held) -> None:
    """Rows come back to whoever sent them."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    first = await busy(batcher, engine)
    requests = [[[6], [7, 8]], [[9]], [[10, 11, 12], [13], [14]]]
    tasks = await queued(batcher, *requests)
    engine.allowed.set()
    results = await asyncio.gather(first, *tasks)
    assert engine.batches == [[[5]], [ids for request in requests for ids in request]]
    for inputs, vectors in zip([[[5]], *requests], results, strict=True):
        expected = engine.embed_ids(inputs)
        np.testing.assert_allclose(expected, vectors, atol=1e-5)


async def test_a_step_is_bounded_in_tokens_and_a_large_request_holds_up_nobody(
    engine: Held,
) -> None:
    """The large one is spread over steps; a small one that comes later is in the next."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    first = await busy(batcher, engine)
    inputs = STEP_TOKENS // 32
    large, small = await queued(batcher, [[5] * 32] * (3 * inputs), [[6]])
    engine.allowed.set()
    vectors = await small
    assert not large.done()
    assert (await large).shape == (3 * inputs, 32)
    await first
    assert vectors.shape == (1, 32)
    assert [6] in engine.batches[1]
    assert all(sum(map(len, batch)) <= STEP_TOKENS for batch in engine.batches)
    assert [1, inputs, inputs, inputs, 1] == [len(batch) for batch in engine.batches]


async def test_a_step_is_shared_equally_and_filled(engine: Held) -> None:
    """Two large requests have half each; what a small one leaves is theirs."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    first = await busy(batcher, engine)
    count = STEP_TOKENS // 32
    tasks = await queued(batcher, [[5] * 32] * count, [[6] * 32] * count, [[7] * 32] * 4)
    engine.allowed.set()
    await asyncio.gather(first, *tasks)
    firsts = [ids[0] for ids in engine.batches[1]]
    assert [count // 2 - 2, count // 2 - 2, 4] == [firsts.count(token) for token in (5, 6, 7)]
    assert [1, count, count, 4] == [len(batch) for batch in engine.batches]


async def test_many_long_inputs_share_a_step(engine: Held) -> None:
    """An input above a caller's share is still taken while there is room, in order of arrival."""
    batcher = EmbeddingBatcher(engine, max_queued=300)
    first = await busy(batcher, engine)
    waiting = 2 * STEP_TOKENS // 32
    tasks = await queued(batcher, *([[5] * 31 + [n % 7 + 5]] for n in range(waiting)))
    engine.allowed.set()
    await asyncio.gather(first, *tasks)
    assert [1, waiting // 2, waiting // 2] == [len(batch) for batch in engine.batches]


async def test_a_bad_input_is_refused_before_it_queues(engine: Held) -> None:
    """Its neighbours are answered; the error counts from its own inputs."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    first = await busy(batcher, engine)
    good, bad, long, last = await queued(batcher, [[6]], [[7], [10**6]], [[5] * 49], [[8]])
    with pytest.raises(InvalidRequest, match="input 1 has a token id outside"):
        await bad
    with pytest.raises(InvalidRequest, match="input 0 has 49 tokens"):
        await long
    engine.allowed.set()
    await first
    assert (await good).shape == (await last).shape == (1, 32)


async def test_an_input_that_breaks_the_model_fails_its_own_request_only(engine: Held) -> None:
    """A failed step is halved until the culprit is alone, even where a request has two."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    first = await busy(batcher, engine)
    good, poisoned, last = await queued(batcher, [[6], [7]], [[8], [66], [66], [9]], [[10]])
    engine.poison = 66
    engine.allowed.set()
    await first
    with pytest.raises(ServerError):
        await poisoned
    assert ((await good).shape, (await last).shape) == ((2, 32), (1, 32))
    batcher.check_health()


async def test_an_unexpected_failure_reaches_every_caller_without_its_text(
    engine: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the cause; nobody is left waiting, and the thread goes on."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    first = await busy(batcher, engine)
    tasks = await queued(batcher, [[6]], [[7]])
    engine.broken = True
    engine.allowed.set()
    with caplog.at_level(logging.ERROR):
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [ServerError] * 3 == [type(result) for result in results]
    assert "canary" not in str(results)
    assert any(record.exc_info for record in caplog.records)
    engine.broken = False
    batcher.check_health()
    assert (await batcher.embed([[6]])).shape == (1, 32)


async def test_a_step_that_never_ends_is_found_and_its_requests_end(engine: Held) -> None:
    """Those of the step and those that wait; nobody is taken any more."""
    batcher = EmbeddingBatcher(engine, max_queued=10, step_timeout_s=1e-9)
    batcher.check_health()  # idle
    first = await busy(batcher, engine)
    (second,) = await queued(batcher, [[6]])
    with pytest.raises(ServerError, match="not ended a step"):
        batcher.check_health()
    for request in (first, second):
        with pytest.raises(ServerError):
            await request
    with pytest.raises(Overloaded, match="restarting"):
        await batcher.embed([[7]])


async def test_a_caller_that_left_is_dropped_from_the_queue(engine: Held) -> None:
    """The model does not see its inputs."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    first = await busy(batcher, engine)
    gone, stays = await queued(batcher, [[6]], [[7]])
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    engine.allowed.set()
    await asyncio.gather(first, stays)
    assert engine.batches == [[[5]], [[7]]]


async def test_a_caller_that_leaves_while_it_is_embedded_harms_nobody(engine: Held) -> None:
    """Its result is dropped, the next request is served."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    gone = await busy(batcher, engine)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    engine.allowed.set()
    assert (await batcher.embed([[6]])).shape == (1, 32)


async def test_a_full_queue_refuses_by_number(engine: Held) -> None:
    """503 with Retry-After; those who wait are answered."""
    batcher = EmbeddingBatcher(engine, max_queued=2)
    first = await busy(batcher, engine)
    tasks = await queued(batcher, [[6]], [[7]])
    with pytest.raises(Overloaded, match="2 requests waiting") as caught:
        await batcher.embed([[8]])
    assert caught.value.headers["Retry-After"] == "1"
    engine.allowed.set()
    await asyncio.gather(first, *tasks)


async def test_an_account_with_a_thousand_requests_holds_up_no_other(engine: Held) -> None:
    """Another's first is in the next step; each gets its share of the tokens."""
    batcher = EmbeddingBatcher(engine, max_queued=2000)
    held = await busy(batcher, engine)
    size = 40
    many = [asyncio.create_task(batcher.embed([[7] * size], "big")) for _ in range(1000)]
    await asyncio.sleep(0)
    few = [asyncio.create_task(batcher.embed([[8] * size], "small")) for _ in range(3)]
    await asyncio.sleep(0)
    engine.allowed.set()
    await asyncio.gather(held, *few)
    first = engine.batches[1]
    assert 3 == sum(ids[0] == 8 for ids in first)
    assert sum(map(len, first)) > STEP_TOKENS - size
    await asyncio.gather(*many)
    counts = [sum(map(len, batch)) for batch in engine.batches]
    assert max(counts) <= STEP_TOKENS


async def test_stats_say_what_runs_waits_and_was_padded(engine: Held) -> None:
    """Tokens are those of the steps that are done; each request's wait is told once."""
    tokens, computed = engine.tokens, engine.computed_tokens
    batcher = EmbeddingBatcher(engine, max_queued=10)
    running = await busy(batcher, engine)
    waiting = await queued(batcher, [[5, 6, 7], [8]])
    stats = batcher.stats()
    assert (stats.running, stats.waiting, stats.steps) == (1, 1, 1)
    engine.allowed.set()
    await asyncio.gather(running, *waiting)
    done = batcher.stats()
    assert done.steps == 2
    assert done.tokens - tokens == 1 + 3 + 1
    assert done.computed_tokens - computed >= done.tokens - tokens
    waits = batcher.take_waits()
    assert len(waits) == 2
    assert min(waits) >= 0
    assert batcher.take_waits() == []


async def test_a_batch_waits_for_who_is_online_and_its_steps_are_short(engine: Held) -> None:
    """Who comes while a batch fills the engine is in the next step, and alone in it."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    held = await busy(batcher, engine)
    count = STEP_TOKENS // 32
    batch = asyncio.create_task(batcher.embed([[7] * 32] * count, "a", "batch"))
    await asyncio.sleep(0)
    (online,) = await queued(batcher, [[8] * 32] * count)
    engine.allowed.set()
    await asyncio.gather(held, online, batch)
    steps = [(ids[0][0], len(ids)) for ids in engine.batches]
    assert [(5, 1), (8, count)] == steps[:2]
    short = count // 8
    assert [(7, short)] * 8 == steps[2:]


async def test_a_batch_gets_one_step_in_twenty_while_others_always_wait(engine: Held) -> None:
    """So it ends, whatever the traffic."""
    batcher = EmbeddingBatcher(engine, max_queued=10)
    held = await busy(batcher, engine)
    batch = asyncio.create_task(batcher.embed([[7] * 32] * (STEP_TOKENS // 32), "a", "batch"))
    await asyncio.sleep(0)
    (online,) = await queued(batcher, [[8] * 32] * (STEP_TOKENS // 32 * 60))
    engine.allowed.set()
    await asyncio.gather(held, online, batch)
    turns = [ids[0][0] for ids in engine.batches[1:61]]
    assert [19, 39, 59] == [at for at, token in enumerate(turns) if token == 7]


async def test_a_batch_does_not_fill_the_queue_of_who_is_online(engine: Held) -> None:
    """Each has a bound of its own, and a wait is told of who is online alone."""
    batcher = EmbeddingBatcher(engine, max_queued=1)
    held = await busy(batcher, engine)
    batch = asyncio.create_task(batcher.embed([[6]], "a", "batch"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 requests waiting"):
        await batcher.embed([[6]], "a", "batch")
    (online,) = await queued(batcher, [[8]])
    assert 2 == batcher.stats().waiting
    engine.allowed.set()
    await asyncio.gather(held, online, batch)
    assert 2 == len(batcher.take_waits())


async def test_a_step_of_a_batch_is_left_undone_when_somebody_online_comes(
    engine: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two layers; all its inputs are embedded later, in their order."""
    engine.allowed.set()
    batcher = EmbeddingBatcher(engine, max_queued=10)
    reached, may_go_on = threading.Event(), threading.Event()

    def held() -> None:
        reached.set()
        may_go_on.wait()
        batcher._give_way()

    monkeypatch.setattr(engine, "between_layers", held)
    inputs = [[5 + at % 200] * 32 for at in range(STEP_TOKENS // 32 // 8 + 3)]
    small = asyncio.create_task(batcher.embed([[6]], "b", "batch"))
    batch = asyncio.create_task(batcher.embed(inputs, "a", "batch"))
    await asyncio.to_thread(reached.wait)
    (online,) = await queued(batcher, [[8]])
    may_go_on.set()
    vectors = await asyncio.gather(small, batch, online)
    (undone, next_one, *rest) = engine.batches
    assert [[8]] == next_one
    embedded = [ids for step in rest for ids in step]
    assert sorted([[6], *inputs]) == sorted(embedded)
    assert undone[0] in embedded
    for given, found in zip([[[6]], inputs, [[8]]], vectors, strict=True):
        np.testing.assert_allclose(engine.embed_ids(given), found, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only processes have a priority")
async def test_computing_gives_way_to_those_who_bring_requests(
    engine: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether one input is computed by the batcher's thread, or many on lanes of their own."""
    engine.allowed.set()
    batcher = EmbeddingBatcher(engine, max_queued=10)
    seen: dict[str, int] = {}

    def note() -> None:
        seen[threading.current_thread().name.rpartition("_")[0]] = niceness()

    monkeypatch.setattr(engine, "between_layers", note)
    monkeypatch.setattr(engine, "_lanes", Lanes(2))
    await batcher.embed([[5]])
    await batcher.embed([[5 + at] * 32 for at in range(100)])
    lower = min(19, niceness() + 1)
    assert {"": lower, "embedding-lane": lower} == seen
