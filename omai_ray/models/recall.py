"""Remembering what the user said earlier in the conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omai_ray.models import values
from omai_ray.models.plain_skills import person_name, place_name
from omai_ray.models.samples import Check, Draw, Exchange, Message, exchange


@dataclass(frozen=True)
class Attribute:
    """Something a user may tell about himself; `{thing}` in its texts names a variable part."""

    label: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    make: Callable[[Draw], str]
    answer: str = ""
    things: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Memory:
    """One thing told: how it was said and how it is asked for and answered."""

    attribute: Attribute
    thing: str
    value: str

    def tell(self, draw: Draw) -> str:
        """Say it as the user."""
        return draw.say(self.attribute.statements, thing=self.thing, value=self.value)

    def ask(self, draw: Draw) -> str:
        """Ask for it as the user."""
        return draw.say(self.attribute.questions, thing=self.thing)

    @property
    def label(self) -> str:
        """Name it, as in "your favourite colour"."""
        return self.attribute.label.format(thing=self.thing)

    @property
    def answer(self) -> str:
        """Answer the question for it."""
        template = self.attribute.answer or "Your {label} is {value}."
        return template.format(label=self.label, thing=self.thing, value=self.value)


def _noun(draw: Draw) -> str:
    return draw.value(values.NOUNS)


def _word(draw: Draw) -> str:
    return draw.pseudo_word() if draw.chance(0.6) else draw.value(values.NOUNS)


ATTRIBUTES = (
    Attribute(
        "name",
        (
            "My name is {value}.",
            "I'm {value}.",
            "Hi, I'm {value}.",
            "Hello, my name is {value}.",
            "My first name is {value}.",
            "I am {value}.",
            "You can call me {value}.",
            "Call me {value}.",
            "Hi! My name is {value}.",
            "The name is {value}.",
            "People call me {value}.",
            "I am called {value}.",
        ),
        (
            "What is my name?",
            "What's my name?",
            "Do you remember my name?",
            "Who am I?",
            "Can you tell me my name?",
            "Tell me my name.",
            "What did I say my name was?",
            "What am I called?",
            "Do you know my name?",
            "Say my name.",
            "Which name did I give you?",
            "Remind me, what is my name?",
        ),
        person_name,
    ),
    Attribute(
        "city",
        (
            "I live in {value}.",
            "My home is in {value}.",
            "I am from {value}.",
            "I'm from {value}.",
            "My home town is {value}.",
            "My city is {value}.",
            "I come from {value}.",
            "I moved to {value}.",
            "I'm living in {value}.",
            "I have a flat in {value}.",
        ),
        (
            "Where do I live?",
            "Which city do I live in?",
            "What city do I live in?",
            "Do you remember where I live?",
            "In which city do I live?",
            "Where is my home?",
            "Tell me where I live.",
            "Where am I from?",
            "What is my city?",
            "Which city am I from?",
            "Where did I say I live?",
        ),
        place_name,
        "You live in {value}.",
    ),
    Attribute(
        "favourite colour",
        (
            "My favourite colour is {value}.",
            "My favorite color is {value}.",
            "I like the colour {value} best.",
            "The colour I love most is {value}.",
            "The color I like best is {value}.",
            "{value} is my favourite colour.",
            "I like {value} more than any other colour.",
            "{value} is my favorite color.",
        ),
        (
            "What is my favourite colour?",
            "What is my favorite color?",
            "What's my favourite colour?",
            "Which colour do I like best?",
            "Which colour is my favourite?",
            "Do you remember my favourite colour?",
            "What colour do I like?",
            "Tell me my favourite colour.",
            "What's my favorite color?",
            "Which color do I like most?",
        ),
        lambda draw: draw.value(values.COLOURS),
    ),
    Attribute(
        "favourite number",
        (
            "My favourite number is {value}.",
            "My lucky number is {value}.",
            "My favorite number is {value}.",
            "The number I like best is {value}.",
            "{value} is the number I like best.",
            "I like the number {value}.",
            "{value} is my favourite number.",
        ),
        (
            "What is my favourite number?",
            "What's my favorite number?",
            "What is my lucky number?",
            "Which number do I like best?",
            "Which number is my favourite?",
            "Do you remember my favourite number?",
            "What number do I like?",
            "Tell me my favourite number.",
        ),
        lambda draw: str(draw.number(0, 999 if draw.chance(0.3) else 99)),
    ),
    Attribute(
        "favourite food",
        (
            "My favourite food is {value}.",
            "My favorite food is {value}.",
            "I love to eat {value}.",
            "I like {value} best of all foods.",
            "The food I like best is {value}.",
            "What I like to eat most is {value}.",
            "{value} is my favourite food.",
        ),
        (
            "What is my favourite food?",
            "What's my favorite food?",
            "What do I love to eat?",
            "Which food do I like best?",
            "Which food is my favourite?",
            "Do you remember my favourite food?",
            "What food do I like?",
            "Tell me my favourite food.",
        ),
        lambda draw: draw.value(values.FOODS),
    ),
    Attribute(
        "{thing}'s name",
        (
            "My {thing} is called {value}.",
            "My {thing}'s name is {value}.",
            "I have a {thing} called {value}.",
            "I have a {thing}, {value}.",
            "The name of my {thing} is {value}.",
            "My {thing} has the name {value}.",
            "I have a {thing} named {value}.",
            "My {thing} is named {value}.",
        ),
        (
            "What is my {thing}'s name?",
            "What is my {thing} called?",
            "What's my {thing}'s name?",
            "What is the name of my {thing}?",
            "How is my {thing} called?",
            "Do you remember the name of my {thing}?",
            "Tell me my {thing}'s name.",
            "What's the name of my {thing}?",
            "What's my {thing} called?",
            "Do you know my {thing}'s name?",
        ),
        lambda draw: draw.value(values.PET_NAMES) if draw.chance(0.5) else person_name(draw),
        "Your {thing} is called {value}.",
        (*values.ANIMALS, "sister", "brother", "mother", "father", "son", "daughter", "teacher"),
    ),
    Attribute(
        "job",
        (
            "I work as a {value}.",
            "My job is {value}.",
            "I am a {value}.",
            "I'm a {value}.",
            "I earn my living as a {value}.",
            "By trade I am a {value}.",
            "I am working as a {value}.",
        ),
        (
            "What is my job?",
            "What do I work as?",
            "What's my job?",
            "Which job do I have?",
            "What do I do for a living?",
            "Do you remember my job?",
            "Tell me my job.",
            "What job do I have?",
        ),
        lambda draw: draw.value(values.JOBS),
        "You work as a {value}.",
    ),
    Attribute(
        "age",
        (
            "I am {value} years old.",
            "I'm {value} years old.",
            "My age is {value}.",
            "I turned {value} this year.",
            "I have just turned {value}.",
            "I'm aged {value}.",
        ),
        (
            "How old am I?",
            "What is my age?",
            "Do you remember how old I am?",
            "What's my age?",
            "Which age did I tell you?",
            "Tell me how old I am.",
            "Tell me my age.",
        ),
        lambda draw: str(draw.number(5, 99)),
        "You are {value} years old.",
    ),
    Attribute(
        "hobby",
        (
            "My hobby is {value}.",
            "I enjoy {value}.",
            "In my free time I like {value}.",
            "I spend my weekends {value}.",
            "I really love {value}.",
            "What I enjoy most is {value}.",
        ),
        (
            "What is my hobby?",
            "What's my hobby?",
            "What do I enjoy?",
            "What do I like to do in my free time?",
            "Which hobby do I have?",
            "Do you remember my hobby?",
            "Tell me my hobby.",
        ),
        lambda draw: draw.value(values.HOBBIES),
    ),
    Attribute(
        "{thing}",
        (
            "The {thing} is {value}.",
            "My {thing} is {value}.",
            "Remember that my {thing} is {value}.",
            "Please remember the {thing}: {value}.",
            "Keep in mind that the {thing} is {value}.",
            "Remember this: the {thing} is {value}.",
            "Please note that the {thing} is {value}.",
            "For later: my {thing} is {value}.",
            "Remember the {thing} {value}.",
            "I want you to remember that the {thing} is {value}.",
        ),
        (
            "What is the {thing}?",
            "What is my {thing}?",
            "What's the {thing}?",
            "What's my {thing}?",
            "Which {thing} did I tell you?",
            "Do you remember the {thing}?",
            "Tell me the {thing}.",
            "What was the {thing}?",
            "What was my {thing}?",
            "Do you remember my {thing}?",
            "Can you tell me the {thing}?",
        ),
        lambda draw: str(draw.number(10, 999)) if draw.chance(0.3) else _word(draw),
        "The {thing} is {value}.",
        (
            *("secret word", "password", "code word", "magic word", "code", "room number"),
            *("project name", "team name", "keyword", "user name", "locker code", "lucky word"),
            *("order number", "door code", "group name", "nickname", "ticket number", "word"),
        ),
    ),
)
UNKNOWN = "You haven't told me your {label} yet."
PLAIN_ACKS = (
    "Thanks for telling me.",
    "Got it, I'll remember that.",
    "Okay, I'll remember that.",
    "Noted!",
)
CHANGES = (
    "Actually, {statement}",
    "No wait, {statement}",
    "Sorry, I was wrong. {statement}",
    "Correction: {statement}",
    "I changed my mind. {statement}",
    "Let me correct that: {statement}",
)


def draw_memories(draw: Draw, count: int) -> list[Memory]:
    """Draw things to tell, no two with the same label."""
    memories: dict[str, Memory] = {}
    while len(memories) < count:
        weights = (3, 2, 2, 2, 1, 4, 1, 1, 1, 5)
        attribute = draw.rng.choices(ATTRIBUTES, weights)[0]
        memory = Memory(attribute, draw.one(attribute.things), attribute.make(draw))
        memories.setdefault(memory.label, memory)
    return list(memories.values())


def tell(draw: Draw, memories: list[Memory]) -> Exchange:
    """Tell one or two things in one message; the reply acknowledges them."""
    said = " ".join(memory.tell(draw) for memory in memories)
    first = memories[0]
    if first.label == "name":
        reply = f"Nice to meet you, {first.value}!"
    elif draw.chance(0.25):
        reply = f"Got it, your {first.label} is {first.value}."
    else:
        reply = draw.one(PLAIN_ACKS)
    return exchange(said, reply, Check("contains"))


def ask(draw: Draw, memory: Memory, others: list[Memory]) -> Exchange:
    """Ask for one thing told; no other thing told may be in the answer."""
    wrong = tuple(o.value for o in others if o.value.lower() not in memory.answer.lower())
    return exchange(memory.ask(draw), memory.answer, Check("value", (memory.value,), wrong))


def ask_unknown(draw: Draw, memories: list[Memory]) -> Exchange:
    """Ask for something that was never told."""
    known = {memory.label for memory in memories}
    while True:
        (memory,) = draw_memories(draw, 1)
        if memory.label not in known:
            break
    reply = UNKNOWN.format(label=memory.label)
    wrong = tuple(m.value for m in memories if m.value.lower() not in reply.lower())
    return exchange(memory.ask(draw), reply, Check("refusal", (), wrong))


def change(draw: Draw, memory: Memory) -> tuple[Memory, Exchange]:
    """Correct a thing told before."""
    newer = Memory(memory.attribute, memory.thing, memory.attribute.make(draw))
    said = draw.say(CHANGES, statement=newer.tell(draw))
    return newer, exchange(said, draw.one(PLAIN_ACKS), Check("contains"))


RELATIONS: tuple[tuple[str, tuple[str, ...], str, Callable[[Draw], str]], ...] = (
    (
        "{name} lives in {value}.",
        (
            "Where does {name} live?",
            "In which city does {name} live?",
            "Which city does {name} live in?",
            "Tell me where {name} lives.",
            "What city does {name} live in?",
        ),
        "{name} lives in {value}.",
        place_name,
    ),
    (
        "{name} likes {value}.",
        (
            "What does {name} like?",
            "Which food does {name} like?",
            "What food does {name} like?",
            "Tell me what {name} likes.",
            "What is it that {name} likes?",
        ),
        "{name} likes {value}.",
        lambda draw: draw.value(values.FOODS),
    ),
    (
        "{name} has a {value}.",
        (
            "What does {name} have?",
            "Which thing does {name} have?",
            "Tell me what {name} has.",
            "What has {name} got?",
            "What thing does {name} have?",
        ),
        "{name} has a {value}.",
        _noun,
    ),
    (
        "{name} works as a {value}.",
        (
            "What does {name} work as?",
            "What is the job of {name}?",
            "Which job does {name} have?",
            "Tell me the job of {name}.",
            "What job does {name} have?",
        ),
        "{name} works as a {value}.",
        lambda draw: draw.value(values.JOBS),
    ),
    (
        "{name} is {value} years old.",
        (
            "How old is {name}?",
            "What is the age of {name}?",
            "What age is {name}?",
            "Tell me how old {name} is.",
            "Tell me the age of {name}.",
        ),
        "{name} is {value} years old.",
        lambda draw: str(draw.number(5, 99)),
    ),
)


def read_and_answer(draw: Draw) -> Exchange:
    """Answer a question about people described in the same message."""
    told, asks, answer, make = draw.rng.choice(RELATIONS)
    pairs = {person_name(draw): make(draw) for _ in range(draw.rng.randint(2, 4))}
    name = draw.one(tuple(pairs))
    text = " ".join(told.format(name=n, value=v) for n, v in pairs.items())
    reply = answer.format(name=name, value=pairs[name])
    wrong = tuple(v for n, v in pairs.items() if v != pairs[name])
    check = Check("value", (pairs[name],), wrong)
    return exchange(f"{text} {draw.say(asks, name=name)}", reply, check)


def recall(draw: Draw, fillers: Callable[[Draw, int], list[Message]]) -> Exchange:
    """Tell things, talk of something else, then ask for one of them.

    fillers(draw, most) gives up to `most` unrelated exchanges as messages.
    """
    if draw.chance(0.15):
        return read_and_answer(draw)
    memories = draw_memories(draw, draw.rng.choice((1, 1, 2, 2, 3)))
    messages: list[Message] = []
    left = list(memories)
    while left:
        now, left = (left[:2], left[2:]) if draw.chance(0.3) else (left[:1], left[1:])
        messages += tell(draw, now).messages
        messages += fillers(draw, 1)
    if draw.chance(0.1):
        index = draw.rng.randrange(len(memories))
        memories[index], corrected = change(draw, memories[index])
        messages += corrected.messages
    messages += fillers(draw, 2)
    draw.rng.shuffle(memories)
    last = _questions(draw, memories, messages)
    return Exchange((*messages, *last.messages), last.check)


def _questions(draw: Draw, memories: list[Memory], messages: list[Message]) -> Exchange:
    for memory in memories[1:]:
        if draw.chance(0.5):
            messages += ask(draw, memory, []).messages
    if draw.chance(0.12):
        return ask_unknown(draw, memories)
    return ask(draw, memories[0], memories[1:])
