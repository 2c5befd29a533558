from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from omai_ray.models import (
    api_facts,
    facts,
    plain_skills,
    recall,
    system_skills,
    talk,
    tool_skills,
    values,
)
from omai_ray.models import dialogues as generator
from omai_ray.models.dialogues import SKILLS, dialogues
from omai_ray.models.samples import (
    Draw,
    phrases_of,
    plain_wording,
    values_of,
)

MODULES = (api_facts, facts, plain_skills, recall, system_skills, talk, tool_skills, generator)
NOT_PHRASES = {"PLAIN_ACKS", "DAY_PARTS", "SKILLS", "CONDITIONS"}
NOT_PHRASES |= {"GENERIC_VERBS", "GENERIC_PARAMETERS", "GENERIC_FIELDS"}


def phrase_pools() -> Iterator[tuple[str, ...]]:
    """Yield every pool of wording that users' turns are drawn from."""
    for module in MODULES:
        for name, pool in vars(module).items():
            texts = isinstance(pool, tuple) and all(isinstance(entry, str) for entry in pool)
            if name.isupper() and texts and name not in NOT_PHRASES:
                yield pool
    yield from talk.LIVE_KINDS.values()
    yield from (topic.questions for topic in (*talk.SMALL_TALK, *api_facts.TOPICS_OF_API))
    yield from (family.questions for family in facts.FAMILIES)
    yield from (questions for questions, _, _ in facts.TRIVIA)
    yield from plain_skills.OWN_SUMS.values()
    yield from (attribute.statements for attribute in recall.ATTRIBUTES)
    yield from (attribute.questions for attribute in recall.ATTRIBUTES)
    yield from (relation[1] for relation in recall.RELATIONS)
    yield from (kind.asks for kind in tool_skills.TOOL_KINDS)


def value_pools() -> Iterator[tuple[str, ...]]:
    """Yield every pool of slot values."""
    unsplit = {"KINDS_OF_WORK"}
    named = vars(values).items()
    yield from (pool for name, pool in named if name.isupper() and name not in unsplit)


def test_heldout_wording_never_occurs_in_training() -> None:
    """No phrase of any pool is on both sides, whatever its case and punctuation."""
    trained = {plain_wording(p) for pool in phrase_pools() for p in phrases_of(pool, "train")}
    heldout = {plain_wording(p) for pool in phrase_pools() for p in phrases_of(pool, "heldout")}
    assert len(heldout) > 200
    assert set() == trained & heldout


def words_of(phrase: str) -> set[str]:
    """Split a phrase into words, slots left out."""
    return set(re.findall(r"[a-z0-9']+", re.sub(r"{\w+}", " ", phrase.lower())))


def test_heldout_wording_is_new_sentences_of_known_words() -> None:
    """A model that has only ever seen the generator's text cannot know any other word."""
    pools = set(phrase_pools())
    trained = Counter(
        word for pool in pools for p in phrases_of(pool, "train") for word in words_of(p)
    )
    unknown = {
        word
        for pool in pools
        for phrase in phrases_of(pool, "heldout")
        for word in words_of(phrase)
        if trained[word] < 2
    }
    assert set() == unknown


def test_loosened_wording_is_never_heldout_wording() -> None:
    """A trained phrase that lost or gained a word does not become one of the other side."""
    heldout = {plain_wording(p) for pool in phrase_pools() for p in phrases_of(pool, "heldout")}
    draw = Draw(random.Random(0), "train")
    said: set[str] = set()
    for pool in phrase_pools():
        slots = {name for phrase in pool for name in re.findall(r"{(\w+)}", phrase)}
        unfilled = {name: f"{{{name}}}" for name in slots}
        said |= {plain_wording(draw.say(pool, **unfilled)) for _ in range(60 * len(pool))}
    assert len(said) > 10_000
    assert set() == said & heldout


def test_every_pool_has_two_sides() -> None:
    """Each pool can be drawn from on either side of the split."""
    for pool in phrase_pools():
        assert phrases_of(pool, "train"), pool
        assert phrases_of(pool, "heldout"), pool
    for pool in value_pools():
        assert values_of(pool, "train"), pool
        assert values_of(pool, "heldout"), pool


def test_heldout_values_never_fill_training_slots() -> None:
    """A value is on one side only, in every pool that has it."""
    trained = {value.lower() for pool in value_pools() for value in values_of(pool, "train")}
    heldout = {value.lower() for pool in value_pools() for value in values_of(pool, "heldout")}
    assert set() == trained & heldout


def test_invented_words_keep_to_their_side() -> None:
    """Invented words are drawn afresh, yet none is on both sides."""
    rng = random.Random(0)
    trained = {Draw(rng, "train").pseudo_word() for _ in range(2000)}
    heldout = {Draw(rng, "heldout").pseudo_word() for _ in range(500)}
    assert set() == trained & heldout


def test_heldout_sums_are_never_trained() -> None:
    """No sum is on both sides; a held-out product has its mirror image trained."""
    rng = random.Random(0)
    trained = {plain_skills.draw_sum(Draw(rng, "train")) for _ in range(3000)}
    heldout = {plain_skills.draw_sum(Draw(rng, "heldout")) for _ in range(1000)}
    assert set() == trained & heldout
    for a, op, b in heldout:
        assert op != "*" or not plain_skills.sum_is_heldout(b, op, a)


@pytest.mark.parametrize("skill", SKILLS)
def test_generator_is_deterministic_from_its_seed(skill: str) -> None:
    """The same seed gives the same dialogues; another seed gives others."""
    first = list(dialogues(7, "train", 20, skill))
    assert first == list(dialogues(7, "train", 20, skill))
    assert first != list(dialogues(8, "train", 20, skill))


@pytest.mark.parametrize("skill", SKILLS)
def test_dialogue_ends_with_the_graded_assistant_turn(skill: str) -> None:
    """Every dialogue alternates properly and its last turn is the assistant's."""
    for dialogue in dialogues(0, "train", 50, skill):
        roles = [message["role"] for message in dialogue.messages]
        assert roles[-1] == "assistant"
        assert "system" not in roles[1:]
        assert all(a != b for a, b in pairwise(roles))
