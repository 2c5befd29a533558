from __future__ import annotations

import subprocess
import sys

from omai_ray.engines.chat.prefixes import BLOCK as ENGINE_BLOCK
from omai_ray.routing.prefixes import BLOCK, PrefixAffinity, block_keys, session_key

IDLE = {"a": 0, "b": 0, "c": 0}
PROMPT = list(range(10 * BLOCK))
KEYS = block_keys("account", "", PROMPT)


def other(name: str, least: str = "a") -> str:
    """Return a replica that is not this one."""
    return next(each for each in sorted(IDLE) if each not in (name, least))


def test_keys_are_of_whole_blocks_as_engines_have_them() -> None:
    """A key is that of all that comes before it, too."""
    assert BLOCK == ENGINE_BLOCK
    assert len(block_keys("account", "", PROMPT[: 2 * BLOCK + 5])) == 2
    changed = [7, *PROMPT[1:]]
    assert not set(block_keys("account", "", changed)) & set(KEYS)
    assert block_keys("account", "", [*PROMPT, *changed])[:10] == KEYS
    assert block_keys("account", "", PROMPT[:3]) == []


def test_nothing_is_shared_between_accounts_and_adapters() -> None:
    """As in the engines, whose caches are apart."""
    assert not set(KEYS) & set(block_keys("another", "", PROMPT))
    assert not set(KEYS) & set(block_keys("account", "adapter", PROMPT))
    sessions = {
        session_key(account, adapter, "s", KEYS) for account in ("x", "y") for adapter in ("", "l")
    }
    assert len(sessions) == 4


def test_keys_are_the_same_in_every_process() -> None:
    """Whatever its hash seed, so that processes agree."""
    program = (
        "from omai_ray.routing.prefixes import block_keys;"
        "print(block_keys('account', '', range(32))[-1].hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {KEYS[1].hex() + "\n"}


def test_a_conversation_stays_where_it_was() -> None:
    """Though another replica is less busy, as long as it saves more than that costs."""
    for name in IDLE:
        affinity = PrefixAffinity(most_excess=4, alone=True)
        affinity.note(name, KEYS, b"session")
        assert affinity.rank(IDLE | {name: 1}, KEYS, b"session")[0] == name
        assert affinity.rank(IDLE | {name: 2}, KEYS, b"session")[0] != name


def test_a_known_prompt_is_found_without_its_session() -> None:
    """As for a new conversation that begins with a system prompt the replica has."""
    affinity = PrefixAffinity(most_excess=4, alone=True)
    home = affinity.rank(IDLE, KEYS[:1], b"new")[0]
    knows = other(home, home)
    affinity.note(knows, KEYS, b"old")
    ranked = affinity.rank(IDLE | {home: 2}, KEYS, b"new")
    assert ranked[0] == knows


def test_no_replica_is_overrun_for_what_it_knows() -> None:
    """most_excess above the least busy one is the end of it, and the order has all replicas."""
    affinity = PrefixAffinity(most_excess=4, alone=True)
    keys = block_keys("account", "", list(range(200 * BLOCK)))
    affinity.note("b", keys, b"session")
    assert affinity.rank({"a": 1, "b": 5, "c": 1}, keys, b"session")[0] == "b"
    ranked = affinity.rank({"a": 1, "b": 6, "c": 1}, keys, b"session")
    assert ranked[-1] == "b"
    assert sorted(ranked) == ["a", "b", "c"]


def test_processes_agree_without_knowing_of_each_other() -> None:
    """Where a session is new to both, and where one has replicas in another order."""
    for number in range(50):
        session = f"session-{number}".encode()
        one = PrefixAffinity(4, alone=True).rank(IDLE, KEYS, session)
        two = PrefixAffinity(4, alone=True).rank(dict(reversed(IDLE.items())), KEYS, session)
        assert one == two


def test_sessions_are_spread_and_few_move_when_a_replica_comes() -> None:
    """Rendezvous hashing moves those that the new one wins, and no others."""
    affinity = PrefixAffinity(4, alone=True)
    sessions = [f"session-{number}".encode() for number in range(600)]
    before = [affinity.rank(IDLE, KEYS, session)[0] for session in sessions]
    after = [affinity.rank(IDLE | {"d": 0}, KEYS, session)[0] for session in sessions]
    assert all(140 < before.count(name) < 260 for name in IDLE)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"d"}
    assert 90 < len(moved) < 210


def test_new_prompts_go_to_the_less_busy_of_two_where_others_send_too() -> None:
    """All of them at the one that seemed least busy would overrun it; alone, it is the best."""
    ongoing = {name: 0 if name == "a" else 3 for name in "abcdefgh"}
    sessions = [f"session-{number}".encode() for number in range(400)]
    chosen = {
        alone: [
            PrefixAffinity(4, alone).rank(ongoing, KEYS, session, begins=True)[0]
            for session in sessions
        ]
        for alone in (True, False)
    }
    assert {"a"} == set(chosen[True])
    assert 60 < chosen[False].count("a") < 140  # a quarter: of eight, two are drawn
    assert set(ongoing) == set(chosen[False])


def test_a_session_that_goes_on_is_sought_where_another_process_may_have_sent_it() -> None:
    """At its own replica, busy as that is; one that begins can be nowhere yet."""
    session = b"of another process"
    for alone in (True, False):
        affinity = PrefixAffinity(4, alone)
        home = affinity.rank(IDLE, KEYS, session)[0]
        assert home == affinity.rank(IDLE | {home: 1}, KEYS, session)[0]
        assert home != affinity.rank(IDLE | {home: 1}, KEYS, session, begins=True)[0]


def test_what_is_known_is_asked_whoever_is_drawn() -> None:
    """Two are drawn of those alone that have nothing of a prompt."""
    for name in "abcdefgh":
        affinity = PrefixAffinity(4, alone=False)
        affinity.note(name, KEYS, b"old")
        others = dict.fromkeys("abcdefgh", 1)
        assert name == affinity.rank(others | {name: 1}, KEYS[:8], b"new", begins=True)[0]
        assert name != affinity.rank(others | {name: 3}, KEYS[:8], b"new", begins=True)[0]


def test_what_is_remembered_is_bounded_and_beginnings_stay_longest() -> None:
    """The oldest prompts go first, their ends before their beginnings."""
    affinity = PrefixAffinity(100, True, remembered_blocks=12, remembered_sessions=1)
    affinity.note("a", KEYS, b"one")
    newer = block_keys("another", "", PROMPT)[:6]
    affinity.note("a", newer, b"two")
    assert affinity._known("a", KEYS) == 6
    assert affinity._known("a", newer) == 6
    assert list(affinity._sessions) == [b"two"]


def test_a_replica_that_ended_is_forgotten() -> None:
    """And its sessions go elsewhere."""
    affinity = PrefixAffinity(4, alone=True)
    affinity.note("a", KEYS, b"session")
    affinity.keep({"b", "c"})
    assert affinity._known("a", KEYS) == 0
    assert affinity.rank({"b": 0, "c": 0}, KEYS, b"session")[0] in {"b", "c"}
    assert affinity.rank({}, KEYS, b"session") == []
