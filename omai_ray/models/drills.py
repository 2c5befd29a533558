"""Dense exercises for training only: long copies, many look-ups and many sums in one dialogue."""

from __future__ import annotations

from omai_ray.models import plain_skills, recall, system_skills
from omai_ray.models.samples import Check, Draw, Exchange, Message, assistant, user


def drill(draw: Draw) -> Exchange:
    """Make one exercise; nearly every token of its replies is copied or worked out."""
    kind = draw.rng.random()
    if kind < 0.35:
        messages = _copies(draw)
    elif kind < 0.6:
        messages = _look_ups(draw)
    else:
        messages = _memories(draw)
    return Exchange(tuple(messages), Check("contains"))


def _copies(draw: Draw) -> list[Message]:
    messages: list[Message] = []
    for _ in range(draw.rng.randint(1, 3)):
        words = draw.rng.randint(3, 12)
        text = " ".join(plain_skills.one_word(draw) for _ in range(words))
        messages += [user(draw.say(plain_skills.REPEAT_TEXT, text=text)), assistant(text)]
    return messages


def _look_ups(draw: Draw) -> list[Message]:
    told, asks, answer, make = draw.rng.choice(recall.RELATIONS)
    pairs = {plain_skills.person_name(draw): make(draw) for _ in range(draw.rng.randint(2, 6))}
    said = " ".join(told.format(name=name, value=value) for name, value in pairs.items())
    messages: list[Message] = []
    names = draw.rng.sample(list(pairs), min(len(pairs), 4))
    for number, name in enumerate(names):
        question = draw.say(asks, name=name)
        reply = answer.format(name=name, value=pairs[name])
        messages += [user(f"{said} {question}" if number == 0 else question), assistant(reply)]
    return messages


def _memories(draw: Draw) -> list[Message]:
    memories = recall.draw_memories(draw, draw.rng.randint(2, 5))
    messages: list[Message] = []
    for memory in memories:
        messages += recall.tell(draw, [memory]).messages
    for _ in range(draw.rng.randint(4, 8)):
        if draw.chance(0.25):
            messages += recall.ask_unknown(draw, memories).messages
        else:
            messages += recall.ask(draw, draw.rng.choice(memories), []).messages
    return messages


def sums(draw: Draw) -> Exchange:
    """Do several sums in a row, sometimes with nothing but the results as replies."""
    messages: list[Message] = []
    brief = draw.chance(0.35)
    if brief:
        messages.append({"role": "system", "content": draw.say(system_skills.BRIEF_SYSTEMS)})
    for _ in range(draw.rng.randint(4, 9)):
        question, reply, result = plain_skills.sum_parts(draw)
        messages += [user(question), assistant(str(result) if brief else reply)]
    return Exchange(tuple(messages), Check("contains"))
