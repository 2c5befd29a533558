"""Dense exercises for training only: long copies, many look-ups and many sums in one dialogue."""

from __future__ import annotations

from omai_ray.models import plain_skills, recall
from omai_ray.models.samples import Check, Draw, Exchange, Message, assistant, user


def drill(draw: Draw) -> Exchange:
    """Make one exercise; nearly every token of its replies is copied or worked out."""
    messages = _copies(draw) if draw.chance(0.55) else _look_ups(draw)
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


def sums(draw: Draw) -> Exchange:
    """Do several sums in a row."""
    messages: list[Message] = []
    for _ in range(draw.rng.randint(4, 9)):
        question, reply, _ = plain_skills.sum_parts(draw)
        messages += [user(question), assistant(reply)]
    return Exchange(tuple(messages), Check("contains"))
