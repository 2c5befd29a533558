"""Skills that need one question and one answer: talk, API, facts, sums, repeating, refusing."""

from __future__ import annotations

import json

from omai_ray.models import api_facts, facts, talk, values
from omai_ray.models.samples import Check, Draw, Exchange, exchange, is_heldout_value

REFUSAL = Check("refusal")
LEADS = (
    *("Please tell me: ", "Quick question: ", "I have a question. ", "Hey, ", "So, ", "Hi! "),
    *("Can you help me? ", "I'd like to know: ", "Tell me, ", "Hello! ", "One more question: "),
    *("Sorry, but ", "Another one: ", "Just wondering: ", "And ", "Ok, ", "Tell me this: "),
    "I was wondering, ",
    "Excuse me, ",
    "Next question: ",
    "Well, ",
    "Now, ",
    "Please, ",
    "My question is: ",
    "Hmm, ",
    "Here is a question: ",
    "Could you help? ",
    "First of all, ",
    "Listen, ",
)
CHOICE_LEADS = (
    *("Answer in one word: ", "In one word: ", "One word only: ", "Just the answer: "),
    *("Reply with one word: ", "Only the answer please: ", "Short answer: ", "Briefly: "),
    "Just one word: ",
    "Give one word: ",
    "The answer only: ",
    "With one word: ",
    "Use one word: ",
    "Brief answer: ",
    "Say it in one word: ",
    "Be brief: ",
)


def led(draw: Draw, question: str) -> str:
    """Sometimes put a polite opening before a question."""
    if draw.chance(0.8):
        return question
    return draw.phrase(LEADS) + question


def greeting(draw: Draw) -> Exchange:
    """Greet back, answer how-are-you, and take an introduction."""
    kind = draw.rng.random()
    if kind < 0.4:
        return exchange(draw.say(talk.HELLO), talk.HELLO_REPLY, Check("greeting"))
    if kind < 0.75:
        return exchange(
            draw.say(talk.HOW_ARE_YOU),
            talk.HOW_ARE_YOU_REPLY,
            Check("greeting", ("well",)),
        )
    if kind < 0.88:
        return _good_part(draw)
    return introduction(draw)


def _good_part(draw: Draw) -> Exchange:
    part = draw.one(talk.DAY_PARTS)
    reply = talk.GOOD_PART_REPLY.format(part=part)
    return exchange(draw.say(talk.GOOD_PART, part=part), reply, Check("greeting", (part,)))


def introduction(draw: Draw) -> Exchange:
    """Answer a user who gives a name."""
    name = person_name(draw)
    reply = talk.INTRODUCTION_REPLY.format(name=name)
    return exchange(draw.say(talk.INTRODUCTION, name=name), reply, Check("greeting", (name,)))


def person_name(draw: Draw) -> str:
    """Choose a known first name or invent one."""
    return draw.value(values.FIRST_NAMES) if draw.chance(0.6) else draw.pseudo_word(capital=True)


def place_name(draw: Draw) -> str:
    """Choose a known city or invent one."""
    return draw.value(values.CITIES) if draw.chance(0.65) else draw.pseudo_word(capital=True)


def small_talk(draw: Draw) -> Exchange:
    """Thanks, goodbye, who are you, what can you do, and the like."""
    weights = [4, 4, 5, 5] + [1] * (len(talk.SMALL_TALK) - 4)
    topic = draw.rng.choices(talk.SMALL_TALK, weights)[0]
    question = draw.say(topic.questions)
    return exchange(question, topic.answer, Check("contains", topic.required))


def api_question(draw: Draw) -> Exchange:
    """Answer a question about the OMAi API."""
    kind = draw.rng.random()
    if kind < 0.2:
        return _api_error(draw)
    if kind < 0.35:
        return _api_limit(draw)
    weights = [3 if len(topic.questions) > 14 else 2 for topic in api_facts.TOPICS_OF_API]
    topic = draw.rng.choices(api_facts.TOPICS_OF_API, weights)[0]
    question = led(draw, draw.say(topic.questions))
    return exchange(question, topic.answer, Check("contains", topic.required))


def _api_error(draw: Draw) -> Exchange:
    code = draw.one(tuple(api_facts.ERROR_CODES))
    description, solution = api_facts.ERROR_CODES[code]
    question = led(draw, draw.say(api_facts.ERROR_QUESTIONS, code=code))
    others = tuple(name for other, (name, _) in api_facts.ERROR_CODES.items() if other != code)
    reply = f"Error {code} means {description}. {solution}"
    return exchange(question, reply, Check("contains", (description, solution), others))


def _api_limit(draw: Draw) -> Exchange:
    tier = draw.one((*api_facts.TIERS, "Enterprise"))
    shown = tier.lower() if draw.chance(0.2) else tier
    pools = (api_facts.REQUEST_QUESTIONS, api_facts.TOKEN_QUESTIONS, api_facts.TIER_QUESTIONS)
    which = draw.rng.randrange(3)
    question = led(draw, draw.say(pools[which], tier=shown))
    if tier == "Enterprise":
        return exchange(
            question, api_facts.ENTERPRISE_ANSWER, Check("contains", ("Enterprise", "unlimited"))
        )
    requests, tokens = api_facts.TIERS[tier]
    allowed = (
        f"{requests} requests",
        f"{tokens} tokens",
        f"{requests} requests and {tokens} tokens",
    )
    reply = f"The {tier} tier allows {allowed[which]} per minute."
    return exchange(question, reply, Check("contains", (tier, allowed[which])))


def fact(draw: Draw) -> Exchange:
    """Answer a simple factual question, sometimes in one word when the user asks so."""
    if draw.chance(0.08):
        questions, answer, expected = draw.rng.choice(facts.TRIVIA)
        return exchange(led(draw, draw.say(questions)), answer, Check("value", (expected,)))
    question, reply, check = fact_parts(draw)
    if draw.chance(0.06):
        lead = draw.phrase(CHOICE_LEADS)
        return exchange(lead + question, check.expected[0], Check("equal", check.expected))
    return exchange(led(draw, question), reply, check)


def fact_parts(draw: Draw) -> tuple[str, str, Check]:
    """Draw a fact as question, full reply and check."""
    families = facts.FAMILIES
    weights = [len(family.answers) ** 0.7 for family in families]
    family = draw.rng.choices(families, weights)[0]
    subject = draw.one(tuple(family.answers))
    answer = family.answers[subject]
    shown = subject.lower() if draw.chance(0.12) else subject
    question = draw.say(family.questions, subject=shown)
    reply = family.reply.format(subject=subject, answer=answer)
    others = set(family.answers.values()) - {answer, subject}
    forbidden = tuple(sorted(o for o in others if o.lower() not in f"{question} {answer}".lower()))
    return question, reply[0].upper() + reply[1:], Check("value", (answer,), forbidden)


OPERATORS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "x", "\u00d7", "times")}
SHARED_SUMS = (
    "What is {a} {op} {b}?",
    "What's {a} {op} {b}?",
    "How much is {a} {op} {b}?",
    "Calculate {a} {op} {b}.",
    "Can you work out {a} {op} {b}?",
    "{a} {op} {b} = ?",
    "Compute {a} {op} {b}.",
    "{a} {op} {b}?",
    "What does {a} {op} {b} make?",
    "Work out {a} {op} {b}.",
    "What do you get for {a} {op} {b}?",
    "Tell me what {a} {op} {b} is.",
    "{a} {op} {b} =",
    "Solve {a} {op} {b}.",
    "What is the result of {a} {op} {b}?",
    "Do you know what {a} {op} {b} is?",
    "How much do {a} {op} {b} make?",
    "{a} {op} {b} is what?",
    "What do you get if you work out {a} {op} {b}?",
    "What do I get for {a} {op} {b}?",
    "Give me the answer to {a} {op} {b}.",
    "What is the answer to {a} {op} {b}?",
    "Please calculate {a} {op} {b}.",
    "Could you compute {a} {op} {b}?",
    "Can you tell me what {a} {op} {b} is?",
    "What comes out of {a} {op} {b}?",
    "Find {a} {op} {b}.",
    "{a} {op} {b} makes what?",
    "Can you solve {a} {op} {b}?",
    "Evaluate {a} {op} {b}.",
    "What would {a} {op} {b} be?",
    "Please work out {a} {op} {b}.",
    "Do the sum {a} {op} {b}.",
    "I need the result of {a} {op} {b}.",
    "How much would {a} {op} {b} be?",
    "What does {a} {op} {b} equal?",
    "Help me with {a} {op} {b}.",
    "Tell me the result of {a} {op} {b}.",
    "{a} {op} {b} equals what?",
    "And {a} {op} {b}?",
    "What do we get when we do {a} {op} {b}?",
    "How much is it: {a} {op} {b}?",
    "Could you do {a} {op} {b} for me?",
    "What number is {a} {op} {b}?",
    "My homework says {a} {op} {b}.",
    "Quick, {a} {op} {b}?",
)
OWN_SUMS = {
    "+": (
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "Add {a} to {b}.",
        "I have {a} {noun}s and get {b} more. How many do I have?",
        "Please add {a} and {b} together.",
        "There are {a} {noun}s here and {b} there. How many are there in all?",
        "Give me the sum of {a} and {b}.",
        "If I buy {a} {noun}s and then {b} more, how many do I have?",
        "What do {a} and {b} make together?",
        "What is {a} added to {b}?",
        "Can you add {a} and {b}?",
        "Sum up {a} and {b}.",
        "I have {a} {noun}s and find {b} more. How many are there?",
        "How much are {a} and {b} together?",
        "{a} {noun}s and {b} more {noun}s make how many?",
        "Add up {a} and {b}.",
        "Could you add {b} to {a}?",
        "What do I get if I add {a} and {b}?",
        "I got {a} {noun}s today and {b} yesterday. How many is that?",
        "Please add {a} to {b}.",
        "The sum of {a} and {b}?",
        "What is {b} more than {a}?",
        "Put {a} and {b} together. What is it?",
    ),
    "-": (
        "Subtract {b} from {a}.",
        "Take {b} away from {a}.",
        "What is the difference between {a} and {b}?",
        "I have {a} {noun}s and lose {b}. How many are left?",
        "What is left if I take {b} from {a}?",
        "There were {a} {noun}s and {b} were sold. How many are left?",
        "What is {b} less than {a}?",
        "I had {a} {noun}s and gave away {b}. How many do I have now?",
        "What remains if I take {b} from {a}?",
        "Take {b} from {a}.",
        "Please subtract {b} from {a}.",
        "What is left of {a} after taking {b}?",
        "I have {a} {noun}s and sell {b}. How many are left?",
        "What do I get if I take {b} away from {a}?",
        "Can you subtract {b} from {a}?",
        "How many are left if I take {b} from {a}?",
        "There are {a} {noun}s and {b} go away. How many stay?",
        "Give me the difference between {a} and {b}.",
        "If I lose {b} of {a} {noun}s, how many do I have?",
        "How much is {a} without {b}?",
        "I had {a} {noun}s and ate {b}. How many are left?",
        "Remove {b} from {a}.",
        "{a} take away {b}?",
    ),
    "*": (
        "Multiply {a} by {b}.",
        "What is the product of {a} and {b}?",
        "Multiply {a} and {b}.",
        "I have {a} boxes with {b} {noun}s each. How many {noun}s are there?",
        "Can you multiply {a} by {b}?",
        "There are {a} rows of {b} {noun}s. How many {noun}s are there?",
        "Give me the product of {a} and {b}.",
        "Please multiply {a} and {b}.",
        "Could you multiply {a} and {b}?",
        "{b} {noun}s in each of {a} boxes make how many?",
        "What do I get if I multiply {a} by {b}?",
        "The product of {a} and {b}?",
        "I buy {a} bags with {b} {noun}s each. How many {noun}s is that?",
        "Find the product of {a} and {b}.",
        "{a} multiplied by {b}?",
        "What is {a} multiplied by {b}?",
        "Tell me the product of {a} and {b}.",
        "There are {a} tables with {b} {noun}s on each. How many {noun}s are there?",
        "Multiply {a} with {b}.",
        "How much is {a} multiplied by {b}?",
    ),
}
COMPARE = (
    "Which is bigger, {a} or {b}?",
    "Which number is larger, {a} or {b}?",
    "What is bigger, {a} or {b}?",
    "Is {a} or {b} bigger?",
    "Which is larger: {a} or {b}?",
    "Which one is greater, {a} or {b}?",
    "Tell me which is bigger, {a} or {b}.",
    "Is {a} bigger than {b}?",
    "What is larger: {a} or {b}?",
    "Of {a} and {b}, which is bigger?",
    "Which is more, {a} or {b}?",
    "Which of {a} and {b} is greater?",
    "Is {a} more or is {b} more?",
    "Compare {a} and {b}.",
    "Name the bigger number: {a} or {b}.",
    "Which number is higher, {a} or {b}?",
    "Say which is greater, {a} or {b}.",
    "What is more: {a} or {b}?",
)
COUNT = (
    "Count from {a} to {b}.",
    "Please count from {a} to {b}.",
    "Can you count from {a} to {b}?",
    "List the numbers from {a} to {b}.",
    "Count for me from {a} to {b}.",
    "Give me the numbers from {a} to {b}.",
    "Write the numbers from {a} to {b}.",
    "Count up from {a} to {b}.",
    "Say the numbers from {a} to {b}.",
    "What are the numbers from {a} to {b}?",
    "Start at {a} and count to {b}.",
    "Tell me the numbers from {a} to {b}.",
    "Count {a} to {b}.",
    "Show me all numbers from {a} to {b}.",
    "Can you list the numbers from {a} up to {b}?",
    "Begin at {a} and go to {b}.",
    "From {a} count to {b}.",
    "Name all numbers between {a} and {b}.",
    "Write down {a} to {b}.",
)


def sum_is_heldout(a: int, op: str, b: int) -> bool:
    """Tell whether a sum is held out; of products, only those whose mirror image is trained."""
    held = is_heldout_value(f"{a}{op}{b}")
    if op != "*":
        return held
    return held and a != b and not is_heldout_value(f"{b}{op}{a}")


def draw_sum(draw: Draw) -> tuple[int, str, int]:
    """Draw operands and operator on this side of the split."""
    while True:
        op = draw.rng.choices("+-*", (5, 5, 3))[0]
        top = 10 if op == "*" else draw.rng.choice((10, 20, 20))
        a, b = draw.rng.randint(0, top), draw.rng.randint(0, top)
        if op == "-" and a < b and (top > 20 or draw.chance(0.8)):
            a, b = b, a
        if sum_is_heldout(a, op, b) == (draw.split == "heldout"):
            return a, op, b


def solve(a: int, op: str, b: int) -> int:
    """Compute a small sum."""
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def sum_parts(draw: Draw) -> tuple[str, str, int]:
    """Draw a sum as question, written-out reply and result."""
    a, op, b = draw_sum(draw)
    result = solve(a, op, b)
    own = draw.chance(0.3) and a >= b
    pool = OWN_SUMS[op] if own else SHARED_SUMS
    spoken = draw.one(OPERATORS[op])
    question = draw.say(pool, a=str(a), b=str(b), op=spoken, noun=draw.value(values.NOUNS))
    if not own and spoken in "+-*x" and draw.chance(0.15):
        question = question.replace(f"{a} {spoken} {b}", f"{a}{spoken}{b}")
    sign = "\u00d7" if op == "*" else op
    return question, f"{a} {sign} {b} = {result}.", result


def arithmetic(draw: Draw) -> Exchange:
    """Do a small sum, compare two numbers or count."""
    kind = draw.rng.random()
    if kind < 0.06:
        return _compare(draw)
    if kind < 0.12:
        return _count(draw)
    question, reply, result = sum_parts(draw)
    return exchange(led(draw, question), reply, Check("number", (str(result),)))


def _compare(draw: Draw) -> Exchange:
    while True:
        a, b = draw.rng.sample(range(100), 2)
        if is_heldout_value(f"{a}>{b}") == (draw.split == "heldout"):
            break
    reply = f"{max(a, b)} is bigger than {min(a, b)}."
    return exchange(draw.say(COMPARE, a=str(a), b=str(b)), reply, Check("equal", (reply,)))


def _count(draw: Draw) -> Exchange:
    while True:
        first = 1 if draw.chance(0.4) else draw.rng.randint(0, 20)
        last = first + draw.rng.randint(2, 11)
        if is_heldout_value(f"{first}..{last}") == (draw.split == "heldout"):
            break
    reply = ", ".join(str(n) for n in range(first, last + 1)) + "."
    return exchange(draw.say(COUNT, a=str(first), b=str(last)), reply, Check("equal", (reply,)))


REPEAT_WORD = (
    "Repeat the word {text}.",
    'Repeat "{text}".',
    "Say {text}.",
    'Say "{text}".',
    'Please repeat the word "{text}".',
    "Say the word {text}.",
    "Can you say {text}?",
    'Repeat the word "{text}".',
    "Please say {text}.",
    'Can you repeat "{text}"?',
    'Echo the word "{text}".',
    "Repeat {text}, please.",
    'Write "{text}".',
    "Just say {text}.",
    'Answer with "{text}".',
    'Reply with the word "{text}".',
    "Could you repeat the word {text}?",
    'Only say "{text}".',
    "Tell me the word {text}.",
    'Type "{text}".',
    'Say the following: "{text}".',
    'Just write "{text}".',
    "I want you to say {text}.",
    'Can you write "{text}"?',
    'Copy "{text}".',
    "Say {text} for me.",
    "Write the word {text}.",
    'Print "{text}".',
    "Could you say {text}?",
    'Please answer "{text}".',
    'Give me the word "{text}".',
)
REPEAT_TEXT = (
    "Repeat after me: {text}",
    "Repeat this: {text}",
    "Repeat: {text}",
    "Say this: {text}",
    "Repeat exactly: {text}",
    "Please repeat the following text: {text}",
    "Repeat the following: {text}",
    "Copy this text: {text}",
    "Echo this: {text}",
    "Write this again: {text}",
    "Repeat my words: {text}",
    "Please repeat: {text}",
    "Say exactly this: {text}",
    "Echo: {text}",
    "Repeat this sentence: {text}",
    "Can you repeat this? {text}",
    "Please copy: {text}",
    "Say after me: {text}",
    "Copy: {text}",
    "Copy this: {text}",
    "Please say: {text}",
    "Write exactly: {text}",
    "Please write: {text}",
    "Write the following: {text}",
    "Copy the following: {text}",
    "Say the following: {text}",
    "Could you repeat this? {text}",
    "Type this: {text}",
    "Please copy this: {text}",
    "Copy these words: {text}",
    "Print: {text}",
    "Say: {text}",
    "I want you to repeat this: {text}",
    "Give this back to me: {text}",
    "Write down this text: {text}",
)


def sentence(draw: Draw) -> str:
    """Make a plain sentence from this side's words."""
    noun = values.NOUNS
    shape = draw.rng.randrange(4)
    if shape == 0:
        return (
            f"The {draw.value(values.ADJECTIVES)} {draw.value(noun)} "
            f"{draw.value(values.VERBS_PAST)} the {draw.value(noun)}."
        )
    if shape == 1:
        return f"{person_name(draw)} {draw.value(values.VERBS_PAST)} a {draw.value(noun)}."
    if shape == 2:
        return f"My {draw.value(noun)} is {draw.value(values.ADJECTIVES)}!"
    return (
        f"The quick {draw.value(values.COLOURS)} {draw.value(noun)} jumps over "
        f"the {draw.value(values.ADJECTIVES)} {draw.value(noun)}"
    )


def one_word(draw: Draw) -> str:
    """Draw an invented word, a plain one, a number or one in another script."""
    kind = draw.rng.random()
    if kind < 0.35:
        return draw.pseudo_word(capital=draw.chance(0.3))
    if kind < 0.37:
        return draw.value(values.RARE_TEXT)
    if kind < 0.45:
        return str(draw.number(0, 999))
    return draw.value(values.NOUNS if draw.chance(0.7) else values.ADJECTIVES)


def repeat(draw: Draw) -> Exchange:
    """Repeat a word, phrase or sentence exactly."""
    if draw.chance(0.55):
        text = " ".join(one_word(draw) for _ in range(draw.rng.choice((1, 1, 1, 2, 3))))
        question = draw.say(REPEAT_WORD, text=text)
    else:
        words = draw.rng.randint(2, 5)
        plain = draw.chance(0.5)
        text = sentence(draw) if plain else " ".join(one_word(draw) for _ in range(words))
        question = draw.say(REPEAT_TEXT, text=text)
    return exchange(question, text, Check("equal", (text,)))


def refusal(draw: Draw) -> Exchange:
    """Say politely that it does not know, cannot do or will not help."""
    kind = draw.rng.random()
    if kind < 0.25:
        what = draw.one(tuple(talk.LIVE_KINDS))
        question = draw.say(talk.LIVE_KINDS[what], **_refusal_slots(draw))
        return exchange(led(draw, question), talk.NO_LIVE_DATA.format(what=what), REFUSAL)
    if kind < 0.65:
        question = draw.say(talk.UNKNOWN_QUESTIONS, **_refusal_slots(draw))
        return exchange(led(draw, question), talk.DONT_KNOW, REFUSAL)
    if kind < 0.86:
        question = draw.say(talk.UNDOABLE, **_refusal_slots(draw))
        return exchange(question, talk.CANT_DO, REFUSAL)
    if kind < 0.93:
        return exchange(draw.say(talk.HARMFUL), talk.HARMFUL_REPLY, REFUSAL)
    a, b = (str(draw.number(30, draw.rng.choice((300, 9999)))) for _ in range(2))
    return exchange(draw.say(talk.LARGE_SUM, a=a, b=b), talk.TOO_LARGE, REFUSAL)


def _refusal_slots(draw: Draw) -> dict[str, str]:
    title = f"The {draw.value(values.ADJECTIVES)} {draw.value(values.NOUNS)}".title()
    return {
        "city": place_name(draw),
        "city2": place_name(draw),
        "noun": draw.value(values.NOUNS),
        "food": draw.value(values.FOODS),
        "adjective": draw.value(values.ADJECTIVES),
        "company": draw.pseudo_word(capital=True),
        "topic": draw.value(values.TOPICS),
        "activity": draw.value(values.ACTIVITIES),
        "person": f"{person_name(draw)} {draw.pseudo_word(capital=True)}",
        "name": person_name(draw),
        "work": draw.one(values.KINDS_OF_WORK),
        "title": title,
        "made_up": draw.pseudo_word(capital=True),
        "made_up_word": draw.pseudo_word(),
    }


JSON_ASKS = (
    "Write JSON with {pairs}.",
    "Give me a JSON object with {pairs}.",
    "Return JSON with {pairs}.",
    "Make a JSON object where {pairs}.",
    "Reply in JSON: {pairs}.",
    "Answer as JSON: {pairs}.",
    "Put this into JSON: {pairs}.",
    "Turn this into JSON: {pairs}.",
    "I need JSON with {pairs}.",
    "Please write a JSON object with {pairs}.",
    "Create JSON: {pairs}.",
    "As JSON please: {pairs}.",
    "Create a JSON object: {pairs}.",
    "Make JSON: {pairs}.",
    "Write this as JSON: {pairs}.",
    "JSON with {pairs}, please.",
    "Create JSON with {pairs}.",
    "Write JSON: {pairs}.",
    "Generate JSON with {pairs}.",
    "Please give me JSON: {pairs}.",
    "Format as JSON: {pairs}.",
    "Can you make JSON with {pairs}?",
    "Build a JSON object with {pairs}.",
    "I want a JSON object: {pairs}.",
    "Make me JSON with {pairs}.",
    "Convert to JSON: {pairs}.",
    "JSON please: {pairs}.",
    "Show as JSON: {pairs}.",
)


def json_object(draw: Draw) -> Exchange:
    """Write one to three given keys and values as a JSON object."""
    keys = draw.rng.sample(("name", "city", "age", "colour", "food", "pet"), draw.rng.randint(1, 3))
    made: dict[str, object] = {key: _json_value(draw, key) for key in keys}
    pairs = [f"{key} {value}" for key, value in made.items()]
    spoken = ", ".join(pairs[:-1]) + (" and " if len(pairs) > 1 else "") + pairs[-1]
    reply = json.dumps(made, ensure_ascii=False)
    return exchange(draw.say(JSON_ASKS, pairs=spoken), reply, Check("equal", (reply,)))


def _json_value(draw: Draw, key: str) -> object:
    if key == "age":
        return draw.number(1, 99)
    pools = {"colour": values.COLOURS, "food": values.FOODS, "pet": values.ANIMALS}
    if key in pools:
        return draw.value(pools[key])
    return person_name(draw) if key == "name" else place_name(draw)
