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
        if draw.chance(FRAMED_PART):
            return draw.say(STATEMENT_FRAMES, label=self.label, value=self.value)
        return draw.say(self.attribute.statements, thing=self.thing, value=self.value)

    def ask(self, draw: Draw) -> str:
        """Ask for it as the user."""
        if draw.chance(FRAMED_PART):
            return draw.say(QUESTION_FRAMES, label=self.label)
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
            "Hey, I'm {value}.",
            "They call me {value}.",
            "This is {value} speaking.",
            "Everybody calls me {value}.",
            "I go by {value}.",
            "My full name is {value}.",
            "Just call me {value}.",
            "My friends call me {value}.",
            "{value} is my name.",
            "I introduce myself: {value}.",
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
            "Which name do I have?",
            "What name did I tell you?",
            "What name did I give?",
            "How am I called?",
            "Do you still know my name?",
            "Could you tell me my name?",
            "Please say my name.",
            "Who are you talking to?",
            "Which name did I say?",
            "What is the name I gave you?",
            "Who is talking to you?",
            "So what is my name?",
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
            "The city I live in is {value}.",
            "I was born in {value} and live there.",
            "I have lived in {value} for years.",
            "{value} is my city.",
            "I stay in {value}.",
            "{value} is where I live.",
            "We live in {value}.",
            "I have a house in {value}.",
            "My family lives in {value}, and so do I.",
            "I call {value} my home.",
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
            "Which city is my home?",
            "In what city do I live?",
            "Can you tell me where I live?",
            "Which city did I say I live in?",
            "What place do I live in?",
            "Do you know where I live?",
            "What is my home town?",
            "Which town am I from?",
            "What city am I from?",
            "What is the city I live in?",
            "Where do I come from?",
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
            "The best colour is {value}, I think.",
            "I love {value}, it is my favourite colour.",
            "For me the best color is {value}.",
            "Of all colours I like {value} most.",
            "My most loved colour is {value}.",
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
            "Which color is the one I like?",
            "What colour is my favourite?",
            "What is the colour I like best?",
            "Which is my favourite colour?",
            "Do you know my favourite colour?",
            "Which colour did I say I like?",
            "What color do I love?",
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
            "The number I love is {value}.",
            "My best number is {value}.",
            "Of all numbers I like {value} most.",
            "{value} is my lucky number.",
            "I always choose the number {value}.",
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
            "What number is my favourite?",
            "What is the number I like best?",
            "Which is my favourite number?",
            "Which number did I say I like?",
            "Which number is my lucky one?",
            "What number do I love?",
            "Which number do I like most?",
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
            "The dish I like most is {value}.",
            "My best loved food is {value}.",
            "Of all foods I like {value} most.",
            "I could eat {value} every day.",
            "I eat {value} whenever I can.",
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
            "What food is my favourite?",
            "What is the food I like best?",
            "Which is my favourite food?",
            "Which food did I say I like?",
            "What do I like to eat?",
            "Which dish do I like most?",
            "What food do I love?",
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
            "My {thing} goes by {value}.",
            "I call my {thing} {value}.",
            "There is a {thing} in my life called {value}.",
            "{value} is the name of my {thing}.",
            "{value} is my {thing}.",
            "I have got a {thing} with the name {value}.",
            "This is about my {thing}, called {value}.",
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
            "How do I call my {thing}?",
            "What do I call my {thing}?",
            "Which name does my {thing} have?",
            "Can you tell me my {thing}'s name?",
            "What name does my {thing} have?",
            "Say the name of my {thing}.",
            "Do you know what my {thing} is called?",
            "What did I say my {thing} is called?",
            "Who is my {thing}?",
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
            "By trade I am a {value}.",
            "I earn my living as a {value}.",
            "I am working as a {value}.",
            "I work as a {value} every day.",
            "I have a job as a {value}.",
            "My work: I am a {value}.",
            "I make money as a {value}.",
            "They pay me as a {value}.",
            "My trade is {value}.",
            "{value} is my job.",
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
            "What is my work?",
            "Which work do I do?",
            "What kind of work do I do?",
            "How do I earn my living?",
            "What do I do for work?",
            "What work do I do for a living?",
            "What is it that I work as?",
            "Which job is mine?",
            "What is my trade?",
        ),
        lambda draw: draw.value(values.JOBS),
        "You work as a {value}.",
    ),
    Attribute(
        "age",
        (
            "I am {value} years old.",
            "I'm {value} years old.",
            "I have just turned {value}.",
            "I turned {value} this year.",
            "My age is {value}.",
            "I'm aged {value}.",
            "I will stay {value} until my birthday.",
            "I am now {value} years of age.",
            "My age today is {value}.",
            "I became {value} last month.",
            "{value} is my age.",
        ),
        (
            "How old am I?",
            "What is my age?",
            "Do you remember how old I am?",
            "What's my age?",
            "Which age did I tell you?",
            "Tell me how old I am.",
            "Tell me my age.",
            "How many years old am I?",
            "What age am I?",
            "Which age do I have?",
            "What age did I say I am?",
            "Do you know how old I am?",
            "Which age did I mention?",
            "How old did I say I am?",
            "Can you tell me how old I am?",
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
            "What I enjoy most is {value}.",
            "I really love {value}.",
            "I spend my time {value}.",
            "My favourite hobby is {value}.",
            "When I am free, I like {value}.",
            "I am fond of {value}.",
            "{value} is my hobby.",
            "For fun I do {value}.",
        ),
        (
            "What is my hobby?",
            "What's my hobby?",
            "What do I enjoy?",
            "What do I like to do in my free time?",
            "Which hobby do I have?",
            "Do you remember my hobby?",
            "Tell me my hobby.",
            "What hobby do I have?",
            "Which hobby is mine?",
            "What do I do for fun?",
            "What do I do in my free time?",
            "Which hobby did I mention?",
            "What is the hobby I have?",
            "What do I like doing?",
            "Do you know my hobby?",
            "What is it that I enjoy?",
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
            "Remember this: the {thing} is {value}.",
            "Keep in mind that the {thing} is {value}.",
            "Please note down that the {thing} is {value}.",
            "For later: my {thing} is {value}.",
            "Remember the {thing} {value}.",
            "I want you to remember that the {thing} is {value}.",
            "Here is my {thing}: {value}.",
            "This is the {thing}: {value}.",
            "The {thing} to remember is {value}.",
            "Save this: my {thing} is {value}.",
            "I chose {value} as my {thing}.",
            "{value} is the {thing}.",
            "We use {value} as the {thing}.",
            "Store the {thing} {value}.",
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
            "Which {thing} did I give you?",
            "What {thing} did I tell you?",
            "Which {thing} did I mention?",
            "Which {thing} do I have?",
            "Do you know the {thing}?",
            "Say the {thing}.",
            "Which {thing} did I say?",
            "Could you tell me my {thing}?",
            "Can you tell me my {thing}?",
            "What {thing} did I give you?",
            "Please give me the {thing}.",
            "I told you a {thing}. Which?",
            "Which was the {thing}?",
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
STATEMENT_FRAMES = (
    "By the way, my {label} is {value}.",
    "Just so you know, my {label} is {value}.",
    "Let me tell you that my {label} is {value}.",
    "You should know that my {label} is {value}.",
    "It may help to know that my {label} is {value}.",
    "About me: my {label} is {value}.",
    "I can tell you that my {label} is {value}.",
    "For my {label} please note {value}.",
    "When it comes to my {label}, it is {value}.",
    "My {label}? It is {value}.",
    "If you want to know my {label}, it is {value}.",
    "{value}, that is my {label}.",
)
QUESTION_FRAMES = (
    "What was my {label} again?",
    "Do you still know my {label}?",
    "Could you tell me my {label}?",
    "I forgot my {label}. What is it?",
    "Please remind me of my {label}.",
    "What did I say my {label} is?",
    "Please tell me my {label}.",
    "Do you recall my {label}?",
    "And my {label}?",
    "What is it, my {label}?",
    "Say what my {label} is.",
    "Tell me what my {label} is.",
    "I told you my {label}. What is it?",
    "Now what is my {label}?",
    "What do you know about my {label}?",
    "Can you say my {label}?",
    "Give me my {label}.",
    "Can you remember my {label}?",
    "What have I told you about my {label}?",
    "Can you recall what my {label} is?",
    "My {label} is what?",
    "My {label}, please.",
    "I want to hear my {label}.",
    "Repeat my {label}.",
)
FRAMED_PART = 0.35
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
    "Oh, I was wrong. {statement}",
    "Let me correct that: {statement}",
    "I made a mistake. {statement}",
    "Wait, that was wrong. {statement}",
    "Please change that: {statement}",
    "I was mistaken: {statement}",
    "That was not right. {statement}",
    "Forget that. {statement}",
    "One correction: {statement}",
    "It has changed: {statement}",
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
            "Where is the home of {name}?",
            "{name} lives where?",
            "Where is {name} living?",
            "Can you tell me where {name} lives?",
            "Do you know where {name} lives?",
            "What is the city of {name}?",
            "In what city does {name} live?",
            "Which city is the home of {name}?",
            "Say where {name} lives.",
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
            "{name} likes what?",
            "What food is it that {name} likes?",
            "Can you tell me what {name} likes?",
            "Do you know what {name} likes?",
            "Which dish does {name} like?",
            "What would {name} like to eat?",
            "Say what {name} likes.",
            "What does {name} like to eat?",
            "Which food is liked by {name}?",
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
            "{name} has what?",
            "What is it that {name} has?",
            "Can you tell me what {name} has?",
            "Do you know what {name} has?",
            "What has {name}?",
            "Say what {name} has.",
            "Which thing has {name} got?",
            "What does {name} own?",
            "What belongs to {name}?",
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
            "{name} works as what?",
            "What is {name} working as?",
            "Can you tell me the job of {name}?",
            "Do you know the job of {name}?",
            "What does {name} do for a living?",
            "What work does {name} do?",
            "Say what {name} works as.",
            "Which work does {name} do?",
            "What is it that {name} works as?",
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
            "{name} is how old?",
            "What is the age that {name} has?",
            "Can you tell me how old {name} is?",
            "Do you know how old {name} is?",
            "How many years old is {name}?",
            "Which age does {name} have?",
            "Say how old {name} is.",
            "What age has {name} got?",
            "Do you know the age of {name}?",
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
