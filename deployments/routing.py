"""Serve's request routers for models: where a handle's call goes.

The choice itself is made in `omai_ray.routing`. Serve makes a router in each process that has a
handle, and calls it on one event loop.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

from ray.serve._private.replica_result import ReplicaResult
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.text import ChatJob
from omai_ray.routing.prefixes import PrefixAffinity, block_keys, session_key
from omai_ray.routing.tokens import QueuedTokens


def router_config(spec: ModelSpec, ingresses: int) -> RequestRouterConfig:
    """Return what routes the requests for a model from so many ingress replicas."""
    options: dict[str, Any] = {"request_router_class": f"{__name__}:{TokenRouter.__name__}"}
    if spec.task == "chat":
        # A quarter of what runs at once: busier, what is saved is lost by waiting.
        options = {
            "request_router_class": f"{__name__}:{PrefixRouter.__name__}",
            "request_router_kwargs": {
                "most_excess": max(spec.max_running_requests // 4, 1),
                "alone": ingresses == 1,
            },
        }
    return RequestRouterConfig(**options)


class _RankingRouter(RequestRouter):
    """Tries replicas in order: those that refuse, being full, are passed over."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return replicas, best first."""
        if pending_request is not None:
            # Serve looks for the request to give a replica to by an id that all calls for one HTTP
            # request share; two at a time would have one of them wait for ever.
            internal_id = pending_request.metadata.internal_request_id
            self._pending_requests_by_id[internal_id] = pending_request
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ongoing = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for name, replica in replicas.items()
        }
        return [[replicas[name]] for name in self._rank(ongoing, pending_request)]

    @abstractmethod
    def _rank(self, ongoing: dict[str, int], request: PendingRequest | None) -> list[str]: ...


class PrefixRouter(_RankingRouter):
    """For chat: prompts go where their beginning has been computed."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Begin with nothing sent; kwargs are those of PrefixAffinity."""
        self._affinity = PrefixAffinity(**kwargs)

    def _rank(self, ongoing: dict[str, int], request: PendingRequest | None) -> list[str]:
        keys, session, begins = _prompt(request)
        return self._affinity.rank(ongoing, keys, session, begins=begins)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """Remember where a prompt went."""
        keys, session, _ = _prompt(pending_request)
        self._affinity.note(replica_id.unique_id, keys, session)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget what replicas had that have ended."""
        super().update_replicas(replicas)
        self._affinity.keep({replica.replica_id.unique_id for replica in replicas})


def _prompt(request: PendingRequest | None) -> tuple[list[bytes], bytes, bool]:
    """Return the keys of a prompt's blocks and of its session, and whether that begins with it.

    Of other calls, nothing alike.
    """
    job = request.args[0] if request is not None and request.args else None
    if not isinstance(job, ChatJob):
        return [], os.urandom(8), True
    keys = block_keys(job.account, job.adapter, job.prompt_ids)
    return keys, session_key(job.account, job.adapter, job.session, keys), job.begins


class TokenRouter(_RankingRouter):
    """For embeddings and rerankers: inputs go where the fewest tokens wait."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Begin with nothing sent."""
        self._queued = QueuedTokens()

    def _rank(self, ongoing: dict[str, int], request: PendingRequest | None) -> list[str]:
        return self._queued.rank(ongoing)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        """Count the request's tokens until it has ended."""
        inputs = pending_request.args[0] if pending_request.args else ()
        tokens = sum(map(len, inputs))
        name = replica_id.unique_id
        self._queued.begin(name, tokens)

        def end(_: Any) -> None:  # called in whatever thread sees the end
            self._event_loop.call_soon_threadsafe(self._queued.end, name, tokens)

        result.add_done_callback(end)
