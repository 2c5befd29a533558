"""Following a system prompt: answer in one word, bear a name, know the user, know a note."""

from __future__ import annotations

from collections.abc import Callable

from omai_ray.models import plain_skills, recall
from omai_ray.models.plain_skills import person_name
from omai_ray.models.samples import Check, Draw, Exchange, Message, assistant, exchange, user

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
    "Your name is {name} and you help people.",
    "You are a helper with the name {name}.",
    "Call yourself {name}.",
    "You go by the name {name}.",
    "Speak as {name}.",
    "You are known as {name}.",
    "From now on you are {name}.",
    "You are {name}. Help the user.",
    "The assistant is called {name}.",
    "Pretend to be {name}.",
    "Users know you as {name}.",
    "You act as {name}, a kind helper.",
    "Play {name}, a helpful guide.",
    "Your job is to be {name}.",
    "This assistant has the name {name}.",
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
    "Can you tell me your name?",
    "Which name do you have?",
    "How should I call you?",
    "By which name do you go?",
    "What do people call you?",
    "Hi, what is your name?",
    "Could you introduce yourself?",
    "Who is there?",
    "Tell me, who are you?",
    "Do you have your own name?",
    "May I know your name?",
    "Who is speaking?",
    "What name do you go by?",
    "Have you got a name?",
    "Say your name.",
    "Who am I speaking to?",
    "Please tell me your name.",
    "What's your name again?",
    "Is there a name for you?",
    "What name were you given?",
    "And what is your name?",
    "I'd like to know your name.",
    "Who am I writing to?",
    "Hello, what are you called?",
)
USER_SYSTEMS = (
    "The user's name is {name}.",
    "You are talking to {name}.",
    "The name of the user is {name}.",
    "You are a helpful assistant. The user is {name}.",
    "The user is called {name}.",
    "You are chatting with {name}.",
    "Your user is {name}. Be friendly.",
    "The person you talk to is {name}.",
    "You help {name}.",
    "You are the assistant of {name}.",
    "{name} is the user.",
    "The user goes by {name}.",
    "The user you are helping is called {name}.",
    "You serve a user named {name}.",
    "The name of your user is {name}.",
    "You are talking with a user called {name}.",
    "This chat is with {name}.",
    "The person writing to you is {name}.",
)
NOTE_SYSTEMS = (
    "The {thing} is {value}.",
    "You are a helpful assistant. The {thing} is {value}.",
    "Remember: the {thing} is {value}.",
    "Know that the {thing} is {value}.",
    "Note that the {thing} is {value}.",
    "Keep in mind: the {thing} is {value}.",
    "You should know that the {thing} is {value}.",
    "The {thing} of the user is {value}.",
    "Do not forget: the {thing} is {value}.",
    "Answer the user. The {thing} is {value}.",
    "For your information, the {thing} is {value}.",
    "Be polite. The {thing} is {value}.",
    "Important: the {thing} is {value}.",
    "The user's {thing} is {value}.",
    "It is known that the {thing} is {value}.",
    "You are an assistant who knows that the {thing} is {value}.",
    "Here is a note: the {thing} is {value}.",
    "You know one thing: the {thing} is {value}.",
    "If asked, the {thing} is {value}.",
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
    "Keep it short: one word.",
    "Say only one word.",
    "Give brief answers.",
    "Your answers have one word.",
    "Reply briefly.",
    "Give short answers.",
    "Use a single word to answer.",
    "Answer in a single word.",
    "Respond in one word.",
    "Respond briefly.",
    "Be very brief.",
    "Answer shortly.",
    "Respond with only the answer.",
    "You are a brief assistant.",
    "Only one word, please.",
    "You always reply in one word.",
    "Just give the answer.",
    "Answer as briefly as you can.",
    "No sentences, just the answer.",
    "You speak in single words.",
    "Answer with a single word.",
    "Give one word replies.",
    "Make every answer one word long.",
    "Keep answers brief.",
    "You are a helpful assistant. Be brief.",
    "Respond with one word.",
)
NAME_ATTRIBUTE, NOTE_ATTRIBUTE = recall.ATTRIBUTES[0], recall.ATTRIBUTES[-1]


def system_prompted(
    draw: Draw, fillers: Callable[[Draw, int], list[Message]]
) -> tuple[str, Exchange]:
    """Draw a system prompt that changes an answer, and an exchange that shows it.

    fillers(draw, most) gives up to `most` unrelated exchanges as messages.
    """
    kind = draw.rng.random()
    if kind < 0.45:
        return draw.say(BRIEF_SYSTEMS), _brief(draw)
    if kind < 0.75:
        return _persona(draw, fillers)
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


def _persona(draw: Draw, fillers: Callable[[Draw, int], list[Message]]) -> tuple[str, Exchange]:
    name = person_name(draw)
    prompt = draw.say(PERSONA_SYSTEMS, name=name)
    asked = exchange(
        draw.say(PERSONA_QUESTIONS), f"I'm {name}.", Check("value", (name,), ("OMAi",))
    )
    before = fillers(draw, 1)
    return prompt, Exchange((*before, *asked.messages), asked.check)
