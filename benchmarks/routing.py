"""What the choice of a replica is worth.

`python benchmarks/routing.py [--quick]`: conversations of many turns over four chat replicas, and
embedding requests of very different sizes over four embedding replicas, each once by the routers of
`omai_ray.routing` and once by the power of two choices, which is Serve's default. Schedulers and
prefix caches are the chat engine's own; only the time that a step takes is a formula, and the clock
the simulation's. Three ingress processes choose, none of which knows what the others sent. Ends
with one line of JSON.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from omai_ray.engines.chat import scheduler as engine  # noqa: E402
from omai_ray.engines.chat.arena import Arena  # noqa: E402
from omai_ray.engines.chat.protocol import GenerationRequest  # noqa: E402
from omai_ray.routing.prefixes import BLOCK, PrefixAffinity, block_keys, session_key  # noqa: E402
from omai_ray.routing.tokens import QueuedTokens  # noqa: E402

REPLICAS = [f"replica-{number}" for number in range(4)]
INGRESSES = 3
RUNNING, STEP_TOKENS = 32, 512
CACHE_TOKENS = 1 << 19
# Of an 8B model on one large GPU, about.
STEP_S, TOKEN_S = 0.010, 0.00005
EMBEDDING_TOKENS_PER_S = 20_000
SEED = 7

Clock = list[tuple[float, int, Callable[[float], None]]]
Choose = Callable[[int, dict[str, int], GenerationRequest], str]


@dataclass
class Conversation:
    """What an account and the model say in turns; said: all tokens until now."""

    name: str
    account: str
    said: list[int]
    turns: list[tuple[list[int], int, float]]  # what is asked, the answer's tokens, thinking before


@dataclass
class Outcome:
    """What came of a trace."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    busiest: int = 0


def conversations(rng: random.Random, count: int) -> list[tuple[float, Conversation]]:
    """Return conversations with the times at which they begin, 4 a second."""

    def tokens(least: int, most: int) -> list[int]:
        return [rng.randrange(32_000) for _ in range(rng.randint(least, most))]

    systems = {f"account-{number}": tokens(50, 1000) for number in range(20)}
    found, at = [], 0.0
    for number in range(count):
        at += rng.expovariate(4.0)
        account = rng.choice(list(systems))
        turns = [
            (tokens(10, 300), rng.randint(20, 200), rng.expovariate(1 / 8))
            for _ in range(rng.randint(1, 8))
        ]
        found.append((at, Conversation(f"{number}", account, list(systems[account]), turns)))
    return found


class Replica:
    """A chat engine's scheduler with its prefix cache; steps take simulated time."""

    def __init__(self, clock: Clock, numbers: itertools.count[int], outcome: Outcome) -> None:
        self._scheduler = engine.Scheduler(Arena(CACHE_TOKENS, 64), RUNNING, STEP_TOKENS)
        self._clock = clock
        self._numbers = numbers
        self._outcome = outcome
        self._begun: dict[int, float] = {}
        self._ended: dict[int, Callable[[float, list[int]], None]] = {}
        self._busy = False
        self._rng = random.Random(SEED)

    @property
    def ongoing(self) -> int:
        """How many requests it is at."""
        return len(self._begun)

    def add(
        self, now: float, request: GenerationRequest, ended: Callable[[float, list[int]], None]
    ) -> None:
        """Take a request."""
        sequence = engine.Sequence(request, list(request.prompt_ids))
        self._begun[id(sequence)] = now
        self._ended[id(sequence)] = ended
        self._scheduler.add(sequence)
        self._outcome.busiest = max(self._outcome.busiest, self.ongoing)
        if not self._busy:
            self._step(now)

    def _step(self, now: float) -> None:
        pieces = self._scheduler.plan().pieces
        self._busy = bool(pieces)
        if pieces:
            end = now + STEP_S + TOKEN_S * sum(piece.count for piece in pieces)
            after = lambda at: self._finish(at, pieces)  # noqa: E731
            heapq.heappush(self._clock, (end, next(self._numbers), after))

    def _finish(self, now: float, pieces: Sequence[engine.Piece]) -> None:
        drawing = [piece.sequence for piece in pieces if piece.last]
        self._scheduler.commit(pieces)
        for sequence in drawing:
            sequence.tokens.append(self._rng.randrange(32_000))
            if sequence.generated == 1:
                self._outcome.first_token_s.append(now - self._begun[id(sequence)])
                self._outcome.prompt_tokens += len(sequence.request.prompt_ids)
                self._outcome.cached_tokens += sequence.cached or 0
            if sequence.generated >= sequence.request.max_new_tokens:
                self._scheduler.remove(sequence)
                del self._begun[id(sequence)]
                self._ended.pop(id(sequence))(now, sequence.tokens)
        self._step(now)


def converse(count: int, choose: Choose) -> Outcome:
    """Run a trace over replicas, whose router is `choose`."""
    rng, outcome = random.Random(SEED), Outcome()
    clock: Clock = []
    numbers = itertools.count()
    replicas = {name: Replica(clock, numbers, outcome) for name in REPLICAS}

    def ask(at: float, conversation: Conversation) -> None:
        asked, answer_tokens, _ = conversation.turns.pop(0)
        prompt = conversation.said + asked
        request = GenerationRequest(
            conversation.name, prompt, answer_tokens, account=conversation.account
        )

        def ended(now: float, tokens: list[int]) -> None:
            conversation.said = list(tokens)
            if conversation.turns:
                later(now + conversation.turns[0][2], conversation)

        ongoing = {name: replica.ongoing for name, replica in replicas.items()}
        replicas[choose(rng.randrange(INGRESSES), ongoing, request)].add(at, request, ended)

    def later(at: float, conversation: Conversation) -> None:
        heapq.heappush(clock, (at, next(numbers), lambda now: ask(now, conversation)))

    for begin, conversation in conversations(random.Random(SEED), count):
        later(begin, conversation)
    while clock:
        now, _, event = heapq.heappop(clock)
        event(now)
    return outcome


def by_prefix(ingresses: int) -> Choose:
    """Return our choice, made by so many processes."""
    routers = [PrefixAffinity(RUNNING // 4, ingresses == 1) for _ in range(ingresses)]
    begun: set[bytes] = set()

    def choose(ingress: int, ongoing: dict[str, int], request: GenerationRequest) -> str:
        router = routers[ingress % ingresses]
        keys = block_keys(request.account, request.adapter, request.prompt_ids)
        session = session_key(request.account, request.adapter, request.request_id, keys)
        name = router.rank(ongoing, keys, session, begins=session not in begun)[0]
        begun.add(session)
        router.note(name, keys, session)
        return name

    return choose


def by_two(rng: random.Random) -> Choose:
    """Return the power of two choices (Mitzenmacher 2001), by the number of requests."""

    def choose(ingress: int, ongoing: dict[str, int], request: GenerationRequest) -> str:
        return min(rng.sample(sorted(ongoing), 2), key=ongoing.__getitem__)

    return choose


def most_possible(count: int) -> float:
    """Return the hit rate of one cache that never forgets, by whole blocks."""
    seen: set[bytes] = set()
    rng = random.Random(SEED)
    prompt_tokens = cached_tokens = 0
    for _, conversation in conversations(random.Random(SEED), count):
        for asked, answer_tokens, _ in conversation.turns:
            prompt = conversation.said + asked
            keys = block_keys(conversation.account, "", prompt)
            known = sum(1 for _ in itertools.takewhile(seen.__contains__, keys))
            prompt_tokens += len(prompt)
            cached_tokens += known * BLOCK
            conversation.said = prompt + [rng.randrange(32_000) for _ in range(answer_tokens)]
            seen.update(block_keys(conversation.account, "", conversation.said))
    return cached_tokens / prompt_tokens


def embed(count: int, by_tokens: bool) -> list[float]:
    """Return how long embedding requests take, in seconds, at 70 % load."""
    rng = random.Random(SEED)
    routers = [QueuedTokens(random.Random(number)) for number in range(INGRESSES)]
    free_at = dict.fromkeys(REPLICAS, 0.0)
    ends: list[tuple[float, str, int, int]] = []
    ongoing = dict.fromkeys(REPLICAS, 0)
    mean = 0.9 * 50 + 0.1 * 8_000
    at, took = 0.0, []
    for _ in range(count):
        at += rng.expovariate(0.7 * len(REPLICAS) * EMBEDDING_TOKENS_PER_S / mean)
        while ends and ends[0][0] <= at:
            _, name, ingress, tokens = heapq.heappop(ends)
            ongoing[name] -= 1
            routers[ingress].end(name, tokens)
        tokens = round(rng.expovariate(1 / 50 if rng.random() < 0.9 else 1 / 8_000)) + 1
        ingress = rng.randrange(INGRESSES)
        two = rng.sample(REPLICAS, 2)
        ranked = routers[ingress].rank(ongoing)
        name = ranked[0] if by_tokens else min(two, key=ongoing.__getitem__)
        routers[ingress].begin(name, tokens)
        free_at[name] = max(free_at[name], at) + tokens / EMBEDDING_TOKENS_PER_S
        ongoing[name] += 1
        heapq.heappush(ends, (free_at[name], name, ingress, tokens))
        took.append(free_at[name] - at)
    return took


def _quantiles_ms(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 1), "p95_ms": round(cuts[94] * 1e3, 1)}


def main() -> None:
    """Run both, print tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a fifth of the conversations")
    quick = parser.parse_args().quick
    chats, texts = (200, 5_000) if quick else (1_000, 50_000)

    policies: dict[str, Choose] = {
        "power_of_two": by_two(random.Random(SEED)),
        "prefix": by_prefix(INGRESSES),
        "prefix_one_ingress": by_prefix(1),
    }
    result: dict[str, Any] = {"quick": quick, "conversations": chats, "replicas": len(REPLICAS)}
    result["most_possible_hit_rate"] = round(most_possible(chats), 3)
    print(f"{'chat':<20}{'hit rate':>10}{'TTFT p50 ms':>13}{'p95 ms':>9}{'busiest':>9}")
    for name, choose in policies.items():
        outcome = converse(chats, choose)
        found = {
            "hit_rate": round(outcome.cached_tokens / outcome.prompt_tokens, 3),
            "ttft": _quantiles_ms(outcome.first_token_s),
            "busiest": outcome.busiest,
        }
        result[name] = found
        ttft = found["ttft"]
        print(
            f"{name:<20}{found['hit_rate']:>10.3f}{ttft['p50_ms']:>13.1f}"
            f"{ttft['p95_ms']:>9.1f}{found['busiest']:>9}"
        )
    print(f"{'most possible':<20}{result['most_possible_hit_rate']:>10.3f}\n")
    print(f"{'embedding':<20}{'p50 ms':>10}{'p95 ms':>10}")
    for name, by_tokens in (("power_of_two", False), ("tokens", True)):
        found = _quantiles_ms(embed(texts, by_tokens))
        result[f"embedding_{name}"] = found
        print(f"{name:<20}{found['p50_ms']:>10.1f}{found['p95_ms']:>10.1f}")
    result["hit_rate_vs_power_of_two"] = round(
        result["prefix"]["hit_rate"] / result["power_of_two"]["hit_rate"], 2
    )
    print(json.dumps({"benchmark": "routing", **result}))


if __name__ == "__main__":
    main()
