"""The generator of training and evaluation dialogues, deterministic from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from omai_ray.models import drills, plain_skills, recall, system_skills, tool_skills
from omai_ray.models.samples import (
    Dialogue,
    Draw,
    Exchange,
    Message,
    Split,
)

PLAIN_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are an assistant for the OMAi API.",
    "Be helpful and polite.",
    "You are OMAi, a helpful assistant.",
    "You are a kind and honest assistant.",
    "Answer the questions of the user.",
    "You help users.",
    "You are a chat assistant.",
    "You are an AI assistant.",
    "Help the user as well as you can.",
    "You are a polite and helpful AI.",
)
FILLERS: tuple[tuple[Callable[[Draw], Exchange], int], ...] = (
    (plain_skills.greeting, 1),
    (plain_skills.small_talk, 3),
    (plain_skills.api_question, 3),
    (plain_skills.fact, 5),
    (plain_skills.arithmetic, 6),
    (plain_skills.repeat, 3),
    (plain_skills.refusal, 2),
)
# What training mixes. Exercises ask for many copies, look-ups and sums in few tokens.
WEIGHTS = {
    "greeting": 4,
    "small_talk": 11,
    "api": 14,
    "arithmetic": 9,
    "facts": 12,
    "repeat": 8,
    "recall": 15,
    "tool_call": 16,
    "tool_answer": 4,
    "refusal": 9,
    "system": 16,
    "json": 4,
    "drill": 16,
    "sums": 9,
}
DRILLS = {"drill": drills.drill, "sums": drills.sums}
PLAIN_SKILLS: dict[str, Callable[[Draw], Exchange]] = {
    "greeting": plain_skills.greeting,
    "small_talk": plain_skills.small_talk,
    "api": plain_skills.api_question,
    "arithmetic": plain_skills.arithmetic,
    "facts": plain_skills.fact,
    "repeat": plain_skills.repeat,
    "refusal": plain_skills.refusal,
    "tool_call": tool_skills.tool_call,
    "tool_answer": tool_skills.tool_answer,
    "json": plain_skills.json_object,
}
SKILLS = (*(skill for skill in WEIGHTS if skill not in DRILLS), "long")
LONG_CHARACTERS = (1200, 6200)


def filler(draw: Draw) -> Exchange:
    """Draw an unrelated exchange that gives no name, so that it cannot upset a recall."""
    makers, weights = zip(*FILLERS, strict=True)
    while True:
        made: Exchange = draw.rng.choices(makers, weights)[0](draw)
        if "Nice to meet you" not in str(made.messages[-1]["content"]):
            return made


def fillers(draw: Draw, most: int) -> list[Message]:
    """Draw between none and `most` unrelated exchanges, as messages."""
    count = draw.rng.randint(0, most) if draw.chance(0.7) else 0
    return [message for _ in range(count) for message in filler(draw).messages]


def make_dialogue(draw: Draw, skill: str) -> Dialogue:
    """Make one dialogue whose last turn shows the skill."""
    if skill == "long":
        return long_dialogue(draw, draw.rng.randint(*LONG_CHARACTERS))
    if skill in DRILLS:
        exercise = DRILLS[skill](draw)
        return Dialogue(skill, exercise.messages, exercise.check)
    if skill == "system":
        prompt, shown = system_skills.system_prompted(draw, fillers)
        messages = ({"role": "system", "content": prompt}, *shown.messages)
        return Dialogue(skill, messages, shown.check)
    shown = recall.recall(draw, fillers) if skill == "recall" else PLAIN_SKILLS[skill](draw)
    before = [] if skill == "recall" or draw.chance(0.5) else fillers(draw, 3)
    system = [{"role": "system", "content": draw.say(PLAIN_SYSTEMS)}] if draw.chance(0.3) else []
    tools = shown.tools
    if not tools and skill != "refusal" and draw.chance(0.06):
        tools = (tool_skills.draw_generic_call(draw).tool,)
    return Dialogue(skill, (*system, *before, *shown.messages), shown.check, tools)


def long_dialogue(draw: Draw, characters: int) -> Dialogue:
    """Make a conversation of about this many characters that keeps coming back to early turns.

    Ends with a question about something told, a greeting, a fact or a sum.
    """
    memories = recall.draw_memories(draw, 4)
    messages: list[Message] = []
    for memory in memories:
        messages += recall.tell(draw, [memory]).messages
        messages += fillers(draw, 1)
    size = 0
    while size < characters:
        asked = draw.chance(0.15)
        more = _ask_one(draw, memories) if asked else filler(draw)
        messages += more.messages
        size += sum(len(str(message["content"])) + 12 for message in more.messages)
    last = _ask_one(draw, memories) if draw.chance(0.6) else filler(draw)
    return Dialogue("long", (*messages, *last.messages), last.check)


def _ask_one(draw: Draw, memories: list[recall.Memory]) -> Exchange:
    memory = draw.rng.choice(memories)
    return recall.ask(draw, memory, [other for other in memories if other is not memory])


def dialogues(
    seed: int,
    split: Split,
    count: int,
    skill: str | None = None,
) -> Iterator[Dialogue]:
    """Generate dialogues, all of one skill or in the mix of WEIGHTS."""
    rng = random.Random(f"{seed}/{split}/{skill}")
    draw = Draw(rng, split)
    names, weights = tuple(WEIGHTS), tuple(WEIGHTS.values())
    for _ in range(count):
        yield make_dialogue(draw, skill or rng.choices(names, weights)[0])
