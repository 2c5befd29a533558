"""The generator of training and evaluation dialogues, deterministic from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from omai_ray.models import drills, plain_skills, recall, tool_skills
from omai_ray.models.plain_skills import person_name
from omai_ray.models.samples import (
    Check,
    Dialogue,
    Draw,
    Exchange,
    Message,
    Split,
    assistant,
    exchange,
    user,
)

PLAIN_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are an assistant for the OMAi API.",
    "Be helpful and polite.",
    "You are a kind and honest assistant.",
    "You are OMAi, a helpful assistant.",
    "Answer the questions of the user.",
    "You help users.",
    "You are a chat assistant.",
    "Help the user as well as you can.",
    "You are an AI assistant.",
    "You are a polite and helpful AI.",
)
PERSONA_SYSTEMS = (
    "You are {name}, a helpful assistant.",
    "Your name is {name}.",
    "You are an assistant called {name}.",
    "You are {name}.",
    "You are a helpful assistant named {name}.",
    "You are {name}, a friendly robot.",
    "Your name is {name}. Be polite.",
    "Act as {name}.",
    "You are a friendly assistant. Your name is {name}.",
    "You play the role of {name}.",
    "You are a bot with the name {name}.",
    "You are {name}, the assistant of this site.",
)
PERSONA_QUESTIONS = (
    "Who are you?",
    "What is your name?",
    "What's your name?",
    "What are you called?",
    "Do you have a name?",
    "Who am I talking to?",
    "What should I call you?",
    "Your name?",
    "Tell me your name.",
    "Introduce yourself.",
    "Who am I chatting with?",
    "Hello, who are you?",
    "So who are you?",
    "Please introduce yourself.",
)
USER_SYSTEMS = (
    "The user's name is {name}.",
    "You are talking to {name}.",
    "The name of the user is {name}.",
    "You are a helpful assistant. The user is {name}.",
    "The user is called {name}.",
    "You are chatting with {name}.",
    "Your user is {name}. Be friendly.",
)
NOTE_SYSTEMS = (
    "The {thing} is {value}.",
    "You are a helpful assistant. The {thing} is {value}.",
    "Remember: the {thing} is {value}.",
    "Know that the {thing} is {value}.",
    "Note that the {thing} is {value}.",
    "Keep in mind: the {thing} is {value}.",
)
BRIEF_SYSTEMS = (
    "Answer in one word.",
    "Answer with one word only.",
    "Give only the answer.",
    "Reply with a single word.",
    "Answer briefly.",
    "Be brief.",
    "Keep your answers very short.",
    "Use one word for each answer.",
    "You are a helpful assistant. Answer in one word.",
    "Always answer with a single word.",
    "Reply in one word.",
    "You answer with one word.",
    "You are brief and give only the answer.",
)
NAME_ATTRIBUTE, NOTE_ATTRIBUTE = recall.ATTRIBUTES[0], recall.ATTRIBUTES[-1]

FILLERS: tuple[tuple[Callable[[Draw], Exchange], int], ...] = (
    (plain_skills.greeting, 1),
    (plain_skills.small_talk, 3),
    (plain_skills.api_question, 3),
    (plain_skills.fact, 5),
    (plain_skills.arithmetic, 6),
    (plain_skills.repeat, 3),
    (plain_skills.refusal, 2),
)
WEIGHTS = {
    "greeting": 5,
    "small_talk": 10,
    "api": 12,
    "arithmetic": 11,
    "facts": 10,
    "repeat": 8,
    "recall": 13,
    "tool_call": 11,
    "tool_answer": 5,
    "refusal": 8,
    "system": 8,
    "json": 2,
}
# Training mixes exercises in: they ask for many copies and sums in few tokens.
TRAINING_WEIGHTS = {**WEIGHTS, "drill": 12, "sums": 9}
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
SKILLS = (*WEIGHTS, "long")
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


def system_prompted(draw: Draw) -> tuple[str, Exchange]:
    """Draw a system prompt that changes an answer, and an exchange that shows it."""
    kind = draw.rng.random()
    if kind < 0.45:
        return draw.say(BRIEF_SYSTEMS), _brief(draw)
    if kind < 0.75:
        return _persona(draw)
    if kind < 0.87:
        name = person_name(draw)
        memory = recall.Memory(NAME_ATTRIBUTE, "", name)
        return draw.say(USER_SYSTEMS, name=name), recall.ask(draw, memory, [])
    thing = draw.one(NOTE_ATTRIBUTE.things)
    memory = recall.Memory(NOTE_ATTRIBUTE, thing, NOTE_ATTRIBUTE.make(draw))
    prompt = draw.say(NOTE_SYSTEMS, thing=thing, value=memory.value)
    return prompt, recall.ask(draw, memory, [])


def _brief(draw: Draw) -> Exchange:
    messages: list[Message] = []
    expected = ""
    for _ in range(draw.rng.randint(1, 3)):
        if draw.chance(0.4):
            question, _, result = plain_skills.sum_parts(draw)
            expected = str(result)
        else:
            question, _, check = plain_skills.fact_parts(draw)
            expected = check.expected[0]
        messages += [user(question), assistant(expected)]
    return Exchange(tuple(messages), Check("equal", (expected,)))


def _persona(draw: Draw) -> tuple[str, Exchange]:
    name = person_name(draw)
    prompt = draw.say(PERSONA_SYSTEMS, name=name)
    asked = exchange(
        draw.say(PERSONA_QUESTIONS), f"I'm {name}.", Check("value", (name,), ("OMAi",))
    )
    before = fillers(draw, 1)
    return prompt, Exchange((*before, *asked.messages), asked.check)


def make_dialogue(draw: Draw, skill: str) -> Dialogue:
    """Make one dialogue whose last turn shows the skill."""
    if skill == "long":
        return long_dialogue(draw, draw.rng.randint(*LONG_CHARACTERS))
    if skill in DRILLS:
        exercise = DRILLS[skill](draw)
        return Dialogue(skill, exercise.messages, exercise.check)
    if skill == "system":
        prompt, shown = system_prompted(draw)
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
    mix: Mapping[str, int] = WEIGHTS,
) -> Iterator[Dialogue]:
    """Generate dialogues, all of one skill or in a mix given as relative frequencies."""
    rng = random.Random(f"{seed}/{split}/{skill}")
    draw = Draw(rng, split)
    names, weights = tuple(mix), tuple(mix.values())
    for _ in range(count):
        yield make_dialogue(draw, skill or rng.choices(names, weights)[0])
