from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt
import pytest

from deployments.gathering import CALLS_AT_ONCE, MOST_INPUTS, GatheringBackend
from omai_ray.errors import InvalidRequest, Overloaded


class Lengths:
    """A backend whose vectors are the inputs' lengths; -1 in one is an error of that input."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.accounts: list[str] = []
        self.let = asyncio.Event()
        self.away = False

    async def embed(self, inputs: list[list[int]], account: str) -> npt.NDArray[np.float32]:
        self.calls.append(len(inputs))
        self.accounts.append(account)
        await self.let.wait()
        if self.away:
            raise Overloaded("away")
        if any(-1 in ids for ids in inputs):
            raise InvalidRequest("no such token")
        return np.array([[len(ids)] for ids in inputs], dtype=np.float32)

    async def ready(self) -> None:
        pass


async def test_small_requests_share_calls_and_get_their_own_vectors() -> None:
    """What is asked at one time is one call; so many calls at once, and the rest waits."""
    lengths = Lengths()
    gathering = GatheringBackend(lengths)
    asked = [
        asyncio.create_task(gathering.embed([[0] * n, [0] * (n + 1)], "acct"))
        for n in range(1, MOST_INPUTS * CALLS_AT_ONCE)
    ]
    lengths.let.set()
    for n, vectors in enumerate(await asyncio.gather(*asked), 1):
        assert [[n], [n + 1]] == vectors.tolist()
    assert len(lengths.calls) <= 2 * CALLS_AT_ONCE + 1
    assert max(lengths.calls) <= MOST_INPUTS


async def test_a_call_is_of_one_account_and_has_all_that_waits_of_it() -> None:
    """In whatever order accounts have asked; whoever waits longest is asked for first."""
    lengths = Lengths()
    lengths.let.set()
    gathering = GatheringBackend(lengths)
    names = ["a", "b"] * 10
    vectors = await asyncio.gather(
        *(gathering.embed([[0] * n], name) for n, name in enumerate(names, 1))
    )
    assert list(range(1, 21)) == [row[0, 0] for row in vectors]
    assert (["a", "b"], [10, 10]) == (lengths.accounts, lengths.calls)


async def test_calls_are_as_large_and_as_many_as_is_said() -> None:
    """A request that is larger than a call may be has one of its own."""
    lengths = Lengths()
    gathering = GatheringBackend(lengths, most_inputs=3, calls_at_once=1)
    sizes = [2, 2, 5, 1]
    asked = [asyncio.create_task(gathering.embed([[1]] * size, "acct")) for size in sizes]
    for _ in range(3):
        await asyncio.sleep(0)
    assert [3] == lengths.calls  # the first and the last
    lengths.let.set()
    assert sizes == [len(vectors) for vectors in await asyncio.gather(*asked)]
    assert [3, 2, 5] == lengths.calls


async def test_a_request_that_fails_fails_alone() -> None:
    """Those that shared its call are asked anew."""
    lengths = Lengths()
    lengths.let.set()
    gathering = GatheringBackend(lengths)
    good, bad = gathering.embed([[1, 2]], "acct"), gathering.embed([[-1]], "acct")
    vectors, error = await asyncio.gather(good, bad, return_exceptions=True)
    assert isinstance(error, InvalidRequest)
    assert not isinstance(vectors, BaseException)
    assert [[2]] == vectors.tolist()


async def test_a_model_that_is_away_is_not_asked_once_more_for_each() -> None:
    """All that shared the call are told."""
    lengths = Lengths()
    lengths.let.set()
    lengths.away = True
    gathering = GatheringBackend(lengths)
    errors = await asyncio.gather(
        *(gathering.embed([[1]], "acct") for _ in range(9)), return_exceptions=True
    )
    assert {Overloaded} == {type(error) for error in errors}
    assert 9 == len({id(error) for error in errors})
    assert [9] == lengths.calls


async def test_nobody_waits_for_a_call_that_is_given_up() -> None:
    """Those that share it are told."""
    called = asyncio.Event()

    class Hangs(Lengths):
        async def embed(self, inputs: list[list[int]], account: str) -> npt.NDArray[np.float32]:
            called.set()
            return await super().embed(inputs, account)

    gathering = GatheringBackend(Hangs())
    asked = [asyncio.create_task(gathering.embed([[1]], "acct")) for _ in range(2)]
    await called.wait()
    (call,) = gathering._calls
    call.cancel()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [Overloaded, Overloaded] == [type(error) for error in errors]


async def test_what_is_cancelled_while_it_waits_is_not_asked() -> None:
    """And what it shared a call with is."""
    lengths = Lengths()
    gathering = GatheringBackend(lengths)
    asked = [asyncio.create_task(gathering.embed([[1]], "acct")) for _ in range(2)]
    await asyncio.sleep(0)
    asked[0].cancel()
    lengths.let.set()
    assert [[1]] == (await asked[1]).tolist()
    with pytest.raises(asyncio.CancelledError):
        await asked[0]
