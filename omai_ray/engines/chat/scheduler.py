"""Which tokens the next step computes, and where their keys and values go. Free of torch.

Every step continues all running sequences by one token and fills what is left of its tokens with
prompts, in chunks. A sequence has a contiguous extent that doubles as it grows; where none is free,
finished sequences are evicted, and then the youngest running one makes room and starts again later.

A step belongs to online requests or to batches. While it is another's turn, sequences pause where
they are; those of batches are the first to make room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from omai_ray.engines.chat.arena import Extent
from omai_ray.engines.chat.fair_queue import FairQueue
from omai_ray.engines.chat.prefixes import BLOCK, Prefixes, Stored
from omai_ray.engines.chat.protocol import GenerationRequest
from omai_ray.priority import PRIORITIES, Priority, Turns, step_bound


class Places(Protocol):
    """Where keys and values can lie. total: how many tokens' there are in all."""

    total: int

    def take(self, tokens: int) -> Extent | None:
        """Return a free extent for so many tokens, or None where there is none."""

    def free(self, extent: Extent) -> None:
        """Take an extent back."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request on its way. tokens: the prompt and what was sampled since.

    cached: prompt tokens that had not to be computed when it was first admitted; None before.
    """

    request: GenerationRequest
    tokens: list[int]
    stored: Stored | None = None
    cached: int | None = None

    @property
    def owner(self) -> tuple[str, str]:
        """With whom its keys and values may be shared: another adapter's are other values."""
        return self.request.account, self.request.adapter

    @property
    def generated(self) -> int:
        """How many tokens were sampled."""
        return len(self.tokens) - len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class Copy:
    """Keys and values of `count` tokens to be copied, from one place to another."""

    source: int
    target: int
    count: int


@dataclass(slots=True)  # made for every token: a frozen one takes thrice as long
class Piece:
    """Tokens of a sequence that are to be computed: `count` from `start` on.

    last: whether all of the sequence's tokens are computed then, so that the next is drawn.
    """

    sequence: Sequence
    stored: Stored
    start: int
    count: int
    last: bool


@dataclass(slots=True)
class Plan:
    """A step: copies first, in order, then pieces.

    admitted: sequences that begin to run with it. gives_way: a batch's, begun while nobody was
    online; it may be left undone, and planned again, when somebody comes.
    """

    copies: list[Copy] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    gives_way: bool = False


class Scheduler:
    """Decides; it knows nothing of models.

    max_running: sequences of each priority that run at once. step_tokens: most tokens of a step,
    unless more run.
    """

    def __init__(self, places: Places, max_running: int, step_tokens: int) -> None:
        self._places = places
        self._max_running = max_running
        self._step_tokens = step_tokens
        self._prefixes = Prefixes()
        self._turns = Turns()
        self._queues: dict[Priority, FairQueue[Sequence]] = {
            priority: FairQueue() for priority in PRIORITIES
        }
        self.running: list[Sequence] = []  # in order of admission
        self.preemptions = 0
        self.prompt_tokens = 0  # of all sequences that were begun
        self.cached_tokens = 0  # those of them that had not to be computed

    def waiting(self, priority: Priority) -> int:
        """Return how many sequences wait."""
        return len(self._queues[priority])

    @property
    def use(self) -> float:
        """The part of all places that running sequences hold."""
        return sum(_stored(sequence).extent.size for sequence in self.running) / self._places.total

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self._queue(sequence).join(sequence.request.account, sequence)

    def sequences(self) -> Iterator[Sequence]:
        """Yield all that run or wait."""
        yield from self.running
        for queue in self._queues.values():
            yield from queue

    def remove(self, sequence: Sequence) -> None:
        """End a sequence, wherever it is; what was computed of it stays while there is room."""
        account, queue = sequence.request.account, self._queue(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            queue.take(account, sequence)
        queue.leave(account)

    def forget(self) -> None:
        """Give up what is kept of sequences that have ended."""
        while (evicted := self._prefixes.evict()) is not None:
            self._places.free(evicted.extent)

    def plan(self) -> Plan:
        """Return the next step; empty where there is nothing to do."""
        online = bool(self._running("online") or self._queues["online"])
        turn = self._next_turn(online=online)
        plan = Plan(gives_way=not online)
        for sequence in self._running(turn):
            stored = sequence.stored  # None where it was preempted by one before it
            if stored is not None and len(sequence.tokens) > stored.extent.size:
                self._make_room(sequence, plan)
        running, prompts = self._running(turn), []
        for sequence in running:
            stored = _stored(sequence)
            left = len(sequence.tokens) - stored.computed
            if left == 1:
                plan.pieces.append(Piece(sequence, stored, stored.computed, 1, True))
            else:
                prompts.append((sequence, left))
        # Neighbours in the arena are read in one go, and an adapter's rows are computed in one.
        plan.pieces.sort(key=_place)
        bound = step_bound(turn, self._step_tokens)
        room = max(bound - len(plan.pieces), bound // 4)
        for sequence, left in prompts:
            if room > 0:
                room -= self._compute(sequence, min(left, room), plan)
        while room > 0 and len(running) < self._max_running:
            admitted = self._admit(turn, running, plan)
            if admitted is None:
                break
            running.append(admitted)
            left = len(admitted.tokens) - _stored(admitted).computed
            room -= self._compute(admitted, min(left, room), plan)
        return plan

    def commit(self, pieces: Iterable[Piece]) -> None:
        """Note that pieces were computed."""
        for piece in pieces:
            piece.stored.computed = piece.start + piece.count
            self._prefixes.note(piece.stored)
            self._queue(piece.sequence).serve(piece.sequence.request.account, piece.count)

    def _queue(self, sequence: Sequence) -> FairQueue[Sequence]:
        return self._queues[sequence.request.priority]

    def _running(self, priority: Priority) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.request.priority == priority]

    def _next_turn(self, *, online: bool) -> Priority:
        waiting = self._queues
        batch = bool(self._running("batch") or (waiting["batch"] and not waiting["online"]))
        return self._turns.next(online=online, batch=batch)

    def _compute(self, sequence: Sequence, count: int, plan: Plan) -> int:
        stored = _stored(sequence)
        last = stored.computed + count == len(sequence.tokens)
        plan.pieces.append(Piece(sequence, stored, stored.computed, count, last))
        return count

    def _make_room(self, sequence: Sequence, plan: Plan) -> None:
        """Give a running sequence a larger extent for its tokens, or preempt someone."""
        stored = _stored(sequence)
        while (extent := self._take(len(sequence.tokens))) is None:
            youngest = (self._running("batch") or self.running)[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return
        plan.copies.append(Copy(stored.extent.start, extent.start, stored.computed))
        self._places.free(stored.extent)
        stored.extent = extent

    def _take(self, tokens: int) -> Extent | None:
        while (extent := self._places.take(tokens)) is None:
            evicted = self._prefixes.evict()
            if evicted is None:
                return None
            self._places.free(evicted.extent)
        return extent

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self._queue(sequence).put_back(sequence.request.account, sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._prefixes.finish(_stored(sequence), keep=sequence.request.priority == "online")
        sequence.stored = None

    def _admit(self, turn: Priority, running: list[Sequence], plan: Plan) -> Sequence | None:
        """Let the next one run, where there is a place for its tokens and one more.

        running: those whose turn it is. Batches leave what is free to online requests that wait
        for a place, and give them their own.
        """
        if turn == "batch" and self._queues["online"]:
            return None
        for sequence in self._queues[turn].heads():
            shared, count = self._prefixes.find(sequence.owner, sequence.tokens)
            if not _is_being_computed(sequence, count, running):
                break
        else:
            return None
        source = shared.extent.start if shared is not None else 0
        while (extent := self._take(len(sequence.tokens) + 1)) is None:
            paused = self._running("batch") if turn == "online" else []
            if not paused:
                return None
            self._preempt(paused[-1])
        self._queue(sequence).take(sequence.request.account, sequence)
        # `shared` may have been evicted for this very extent: copies go before what is computed.
        if count and source != extent.start:
            plan.copies.append(Copy(source, extent.start, count))
        sequence.stored = Stored(sequence.owner, sequence.tokens, extent, count)
        if sequence.cached is None:
            sequence.cached = count
            self.prompt_tokens += len(sequence.tokens)
            self.cached_tokens += count
        self.running.append(sequence)
        plan.admitted.append(sequence)
        return sequence


def _is_being_computed(sequence: Sequence, count: int, running: list[Sequence]) -> bool:
    """Tell whether a running prompt begins with more of a sequence's than the `count` tokens.

    It pays to wait for that: n choices of one prompt, or requests that come together with the
    same system prompt, then compute it once.
    """
    more = count + BLOCK
    return len(sequence.tokens) > more and any(
        _stored(other).computed < more <= len(other.request.prompt_ids)
        and other.owner == sequence.owner
        and other.tokens[:more] == sequence.tokens[:more]
        for other in running
    )


def _place(piece: Piece) -> tuple[str, int, int]:
    extent = piece.stored.extent
    return piece.sequence.request.adapter, extent.size, extent.start


def _stored(sequence: Sequence) -> Stored:
    if sequence.stored is None:
        raise RuntimeError("a sequence that does not run has no place")
    return sequence.stored
