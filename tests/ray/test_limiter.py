"""The line between an ingress replica and the actor that keeps the buckets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import ray

from deployments.detached import NAMESPACE
from deployments.limiter import ActorAuthority, actor_name
from omai_ray.quota.protocol import Batch, Claim, Limits, Reservation

SHARD = 63  # no other test's


@pytest.fixture
def authority(ray_cluster: None) -> Iterator[ActorAuthority]:
    """Return the client of an actor of its own."""
    yield ActorAuthority(SHARD, snapshot_s=60.0)
    ray.kill(ray.get_actor(actor_name(SHARD), namespace=NAMESPACE))


def asking(name: str, tokens: int) -> Batch:
    """Return one reservation of an account that has 1,000 tokens a minute."""
    claims = (Claim(f"acct_{name}", Limits(None, 1000)),)
    return Batch([], [], [Reservation(name, claims, tokens)])


async def test_a_call_that_is_given_up_does_not_answer_the_next_one(
    authority: ActorAuthority,
) -> None:
    """Its answer, which may still come, is nobody else's."""
    await authority.call(asking("first", 1))
    given_up = asyncio.create_task(authority.call(asking("second", 200)))
    await asyncio.sleep(0)  # it has been sent
    given_up.cancel()
    (decision,) = await authority.call(asking("third", 700))
    await authority.close()

    assert decision.tokens is not None
    assert 300 == decision.tokens.remaining


async def test_who_does_not_know_the_secret_is_not_answered(authority: ActorAuthority) -> None:
    """The port is open to the node's network; what is said there counts only after the secret."""
    host, port, secret = await authority._actor.endpoint.remote()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(bytes(len(secret)) + b"[[],[],[]]\n")

    assert b"" == await reader.read()
    writer.close()
