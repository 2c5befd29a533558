"""The scheduler's policy, without a model."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from omai_ray.engines.chat.arena import Arena, Extent
from omai_ray.engines.chat.protocol import GenerationRequest
from omai_ray.engines.chat.scheduler import Plan, Scheduler, Sequence
from omai_ray.priority import PRIORITIES, Priority


def sequence(
    prompt: list[int], account: str = "", new: int = 8, priority: Priority = "online"
) -> Sequence:
    """Return a sequence that wants `new` tokens."""
    request = GenerationRequest("r", prompt, new, account=account, priority=priority)
    return Sequence(request, list(prompt))


def step(scheduler: Scheduler, token: int = 7) -> Plan:
    """Plan a step, have it computed, and end sequences that have what they want."""
    plan = scheduler.plan()
    scheduler.commit(plan.pieces)
    for piece in plan.pieces:
        if piece.last:
            piece.sequence.tokens.append(token)
            if piece.sequence.generated == piece.sequence.request.max_new_tokens:
                scheduler.remove(piece.sequence)
    return plan


def test_extents_never_overlap_and_all_come_back() -> None:
    """Whatever is taken and freed in whatever order."""
    rng = random.Random(0)
    arena = Arena(1000, 16)
    assert arena.total == 992
    taken: list[Extent] = []
    for _ in range(3000):
        if taken and rng.random() < 0.5:
            arena.free(taken.pop(rng.randrange(len(taken))))
        elif extent := arena.take(rng.randint(1, 200)):
            assert extent.start % extent.size == 0
            taken.append(extent)
        places = sorted((extent.start, extent.start + extent.size) for extent in taken)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
        assert arena.free_places == arena.total - sum(extent.size for extent in taken)
    for extent in taken:
        arena.free(extent)
    assert arena.take(512) == Extent(0, 512)


def test_a_step_continues_all_and_fills_up_with_prompts() -> None:
    """A long prompt is computed in chunks and does not hold up those that run."""
    scheduler = Scheduler(Arena(4096, 64), 8, 100)
    scheduler.add(sequence([1] * 10, new=50))
    assert [piece.count for piece in step(scheduler).pieces] == [10]
    scheduler.add(sequence([2] * 250))
    counts = [[piece.count for piece in step(scheduler).pieces] for _ in range(4)]
    assert counts == [[1, 99], [1, 99], [1, 52], [1, 1]]


def test_a_shared_beginning_is_copied_and_not_computed() -> None:
    """Of a running or a finished sequence; the last token is always computed."""
    scheduler = Scheduler(Arena(4096, 64), 8, 512)
    scheduler.add(sequence([*range(100)]))
    step(scheduler)
    later = sequence([*range(70), 500, 501])
    same = sequence([*range(100)])
    scheduler.add(later)
    scheduler.add(same)
    plan = step(scheduler)
    assert [copy.count for copy in plan.copies] == [70, 99]
    assert (later.cached, same.cached) == (70, 99)
    for _ in range(10):
        step(scheduler)
    assert not scheduler.running
    again = sequence([*range(100), 1, 2, 3])
    scheduler.add(again)
    assert sum(piece.count for piece in step(scheduler).pieces) == 3


def test_prompts_that_begin_alike_are_computed_once_though_they_come_together() -> None:
    """As the choices of one request do; another account's are not held up by that."""
    scheduler = Scheduler(Arena(4096, 64), 16, 64)
    for _ in range(5):
        scheduler.add(sequence([*range(100)], account="a"))
    scheduler.add(sequence([*range(100)], account="b", new=1))
    computed: Counter[str] = Counter()
    for _ in range(12):
        for piece in step(scheduler).pieces:
            computed[piece.sequence.request.account] += piece.count
    assert not scheduler.running
    assert computed == {"a": 100 + 4 * 1 + 5 * 7, "b": 100}


def test_an_account_shares_nothing_with_another() -> None:
    """The time to a first token must not tell what others asked."""
    scheduler = Scheduler(Arena(4096, 64), 8, 512)
    scheduler.add(sequence([*range(100)], "a"))
    step(scheduler)
    other = sequence([*range(100)], "b")
    scheduler.add(other)
    plan = step(scheduler)
    assert other.cached == 0
    assert not plan.copies


def test_who_asks_for_much_does_not_hold_up_who_asks_for_little() -> None:
    """An account with a hundred waiting gets no more than its share."""
    scheduler = Scheduler(Arena(2**16, 64), 4, 512)
    for at in range(100):
        scheduler.add(sequence([at] * 20, "many"))
    for _ in range(9):
        step(scheduler)
    few = sequence([5] * 20, "few")
    scheduler.add(few)
    waited = 0
    while few.cached is None:
        step(scheduler)
        waited += 1
    assert waited <= 9, "the next place that is free"


def test_shares_are_equal_in_tokens() -> None:
    """Two accounts that always have work get the same, though one asks for more at a time."""
    scheduler = Scheduler(Arena(2**16, 64), 4, 64)
    served: Counter[str] = Counter()
    for at in range(400):
        scheduler.add(sequence([at] * 90, "long", new=4))
        scheduler.add(sequence([at] * 9, "short", new=4))
    for _ in range(400):
        for piece in step(scheduler).pieces:
            served[piece.sequence.request.account] += piece.count
    assert served["long"] == pytest.approx(served["short"], rel=0.15)


def test_the_youngest_makes_room_and_goes_on_later() -> None:
    """With room for one whole sequence only, all are completed, their tokens in order."""
    scheduler = Scheduler(Arena(256, 16), 8, 64)
    sequences = [sequence([at] * 30, new=200) for at in range(5)]
    for one in sequences:
        scheduler.add(one)
    for _ in range(3000):
        if not list(scheduler.sequences()):
            break
        plan = step(scheduler)
        assert plan.pieces, "there is always progress"
        places = sorted(
            (s.stored.extent.start, s.stored.extent.start + s.stored.extent.size)
            for s in scheduler.running
            if s.stored is not None
        )
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert scheduler.preemptions > 0
    assert all(one.generated == 200 for one in sequences)


def test_what_ends_is_forgotten() -> None:
    """Neither sequences nor accounts stay behind."""
    scheduler = Scheduler(Arena(4096, 64), 2, 64)
    for at in range(6):
        scheduler.add(sequence([at] * 5, f"account-{at}", 2, PRIORITIES[at // 2 % 2]))
    for one in list(scheduler.sequences())[::2]:
        scheduler.remove(one)
    for _ in range(20):
        step(scheduler)
    assert list(scheduler.sequences()) == []
    for queue in scheduler._queues.values():
        assert ({}, {}) == (queue._served, queue._present)
    assert not scheduler.plan().pieces


def test_copies_and_pieces_reproduce_what_belongs_where() -> None:
    """Played on a plain list, each computed token finds its own past before it.

    Random prompts with shared beginnings, growth, eviction, preemption and pauses included.
    """
    rng = random.Random(1)
    arena = Arena(1024, 16)
    scheduler = Scheduler(arena, 6, 48)
    memory: list[int | None] = [None] * arena.total
    starts = [[rng.randrange(50) for _ in range(60)] for _ in range(3)]
    added = 0
    while added < 150 or list(scheduler.sequences()):
        if added < 150 and scheduler.waiting("online") < 4 and scheduler.waiting("batch") < 4:
            prompt = [*rng.choice(starts)[: rng.randint(1, 60)], rng.randrange(50)]
            priority: Priority = rng.choice(PRIORITIES)
            scheduler.add(sequence(prompt, rng.choice("ab"), rng.randint(1, 90), priority))
            added += 1
        plan = scheduler.plan()
        for copy in plan.copies:
            moved = memory[copy.source : copy.source + copy.count]
            memory[copy.target : copy.target + copy.count] = moved
        for piece in plan.pieces:
            extent, tokens = piece.stored.extent, piece.sequence.tokens
            end = piece.start + piece.count
            assert end <= extent.size
            memory[extent.start + piece.start : extent.start + end] = tokens[piece.start : end]
        for piece in plan.pieces:
            extent, end = piece.stored.extent, piece.start + piece.count
            assert memory[extent.start : extent.start + end] == piece.sequence.tokens[:end]
        scheduler.commit(plan.pieces)
        for piece in plan.pieces:
            if piece.last:
                piece.sequence.tokens.append(rng.randrange(50))
                if piece.sequence.generated == piece.sequence.request.max_new_tokens:
                    scheduler.remove(piece.sequence)
    assert scheduler.preemptions > 0


def priorities(plan: Plan) -> set[Priority]:
    """Return whose step it is."""
    return {piece.sequence.request.priority for piece in plan.pieces}


def test_a_batch_pauses_for_who_is_online_and_goes_on_where_it_was() -> None:
    """Its keys and values stay; while someone is online it has one step in twenty."""
    scheduler = Scheduler(Arena(4096, 64), 4, 512)
    batch = [sequence([at] * 20, new=80, priority="batch") for at in range(8)]
    for one in batch:
        scheduler.add(one)
    for _ in range(6):
        step(scheduler)
    scheduler.add(sequence([9] * 30, new=60))
    plans = [step(scheduler) for _ in range(63)]
    assert not any(plan.gives_way for plan in plans), "else it would never get its turn"
    turns = list(map(priorities, plans))
    assert [19, 39, 59] == [at for at, turn in enumerate(turns) if turn == {"batch"}]
    assert turns.count({"online"}) == 60
    while list(scheduler.sequences()):
        step(scheduler)
    assert scheduler.preemptions == 0
    assert all(one.generated == 80 for one in batch)


def test_steps_of_a_batch_are_short() -> None:
    """Who comes meanwhile waits for an eighth of a step, or for those that are being answered."""
    scheduler = Scheduler(Arena(2**14, 64), 16, 512)
    for at in range(40):
        scheduler.add(sequence([at] * 300, new=4, priority="batch"))
    while list(scheduler.sequences()):
        plan = step(scheduler)
        assert plan.gives_way
        assert sum(piece.count for piece in plan.pieces) <= 512 // 8
    long = sequence([99] * 1000)
    scheduler.add(long)
    assert [512, 488] == [step(scheduler).pieces[0].count for _ in range(2)]


def test_who_is_online_is_admitted_whatever_a_batch_holds() -> None:
    """In the next step, though the batch has all places; nobody else makes room."""
    scheduler = Scheduler(Arena(512, 16), 4, 512)
    for at in range(8):
        scheduler.add(sequence([at] * 100, new=20, priority="batch"))
    for _ in range(10):
        step(scheduler)
    assert 4 == len(scheduler.running)
    for at in range(3):
        scheduler.add(sequence([50 + at] * 100, new=20))
    first = step(scheduler)
    assert {"online"} == priorities(first)
    assert 3 == len(first.admitted)
    assert 3 == scheduler.preemptions
    preempted: set[int] = set()
    while online := [s for s in scheduler.running if s.request.priority == "online"]:
        step(scheduler)
        preempted |= {id(s) for s in online if s.stored is None and s.generated < 20}
    assert not preempted
    while list(scheduler.sequences()):
        assert step(scheduler).pieces or scheduler.running


def test_a_batch_takes_no_place_that_someone_online_waits_for() -> None:
    """Nor does it make an online request start again."""
    scheduler = Scheduler(Arena(256, 16), 4, 512)
    scheduler.add(sequence([1] * 100, new=20))
    scheduler.add(sequence([2] * 100, new=20))
    step(scheduler)
    waiting = sequence([3] * 100, new=20)
    scheduler.add(waiting)
    scheduler.add(sequence([4] * 10, new=5, priority="batch"))
    while waiting.cached is None:
        assert {"online"} == priorities(step(scheduler))
    assert scheduler.preemptions == 0


def test_who_is_online_does_not_wait_for_what_a_batch_computes() -> None:
    """A prompt that begins like one of a batch that pauses is computed at once."""
    scheduler = Scheduler(Arena(4096, 64), 4, 512)
    prompt = [*range(200)]
    scheduler.add(sequence(prompt, priority="batch"))
    step(scheduler)
    online = sequence(prompt)
    scheduler.add(online)
    plan = step(scheduler)
    assert (online.cached, {"online"}) == (64, priorities(plan))


def test_what_a_batch_leaves_is_evicted_before_what_others_left() -> None:
    """A conversation finds its beginning again, though a batch has filled every place since."""
    scheduler = Scheduler(Arena(1024, 16), 4, 512)
    prompt = [*range(100)]
    scheduler.add(sequence(prompt, new=2))
    while list(scheduler.sequences()):
        step(scheduler)
    for at in range(40):
        scheduler.add(sequence([500 + at] * 100, new=2, priority="batch"))
    while list(scheduler.sequences()):
        step(scheduler)
    again = sequence([*prompt, 7, 7, 8])
    scheduler.add(again)
    step(scheduler)
    assert again.cached is not None
    assert again.cached >= 100


def test_a_batch_costs_an_account_nothing_of_its_share_online() -> None:
    """Shares are among those of the same priority."""
    scheduler = Scheduler(Arena(2**14, 64), 1, 512)
    scheduler.add(sequence([1] * 200, "both", new=50, priority="batch"))
    for _ in range(20):
        step(scheduler)
    scheduler.add(sequence([2] * 20, "both", new=1))
    scheduler.add(sequence([3] * 20, "other", new=1))
    assert "both" == step(scheduler).admitted[0].request.account
