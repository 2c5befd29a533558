"""Calling tools with JSON arguments, and answering from what a tool returned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from omai_ray.models import talk, values
from omai_ray.models.plain_skills import REFUSAL, person_name, place_name, sentence
from omai_ray.models.samples import Check, Draw, Exchange, Message, assistant, user

MakeValue = Callable[[Draw], "str | int"]


@dataclass(frozen=True)
class Parameter:
    """A tool parameter: the slot it takes, the names it may have, and how a value is made."""

    slot: str
    names: tuple[str, ...]
    make: MakeValue
    kind: str = "string"


@dataclass(frozen=True)
class ToolKind:
    """A kind of tool: its names and description, how people ask for it, what it returns."""

    names: tuple[str, ...]
    description: str
    parameters: tuple[Parameter, ...]
    asks: tuple[str, ...]
    fields: tuple[tuple[str, MakeValue], ...] = ()
    reply: str = ""
    missing: str = ""


def _from(pool: tuple[str, ...]) -> MakeValue:
    return lambda draw: draw.value(pool)


def _number(low: int, high: int) -> MakeValue:
    return lambda draw: draw.number(low, high)


def _noun_phrase(draw: Draw) -> str:
    noun = draw.value(values.NOUNS)
    return f"{draw.value(values.ADJECTIVES)} {noun}" if draw.chance(0.5) else noun


def _ticker(draw: Draw) -> str:
    return draw.pseudo_word()[:4].upper()


def _clock(draw: Draw) -> str:
    return f"{draw.rng.randint(0, 23):02d}:{draw.rng.randint(0, 59):02d}"


def _message(draw: Draw) -> str:
    return sentence(draw).rstrip(".!")


_CITY = Parameter("city", ("city", "location", "place", "city", "location"), place_name)
CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")

TOOL_KINDS = (
    ToolKind(
        ("get_weather", "get_current_weather", "weather", "get_weather", "weather_lookup"),
        "Get the current weather for a city",
        (_CITY,),
        (
            *talk.LIVE_KINDS["the weather"],
            "Check the weather in {city}.",
            "Do I need an umbrella in {city}?",
            "How's the weather in {city} right now?",
            "What's the weather like in {city}?",
            "I'm going to {city}. What is the weather there?",
            "Please get the weather for {city}.",
            "Get me the current weather in {city}.",
            "Could you check what the weather is doing in {city}?",
            "Look up the weather for {city}, please.",
            "Find out how the weather is in {city}.",
            "I'd like to know what the weather is like in {city}.",
            "Should I take a coat in {city}?",
            "Can you look up the temperature in {city}?",
            "Show me the weather conditions in {city}.",
            "How many degrees is it in {city}?",
            "I need a weather report for {city}.",
            "Will I need a jacket in {city}?",
            "Is the weather good in {city} at the moment?",
            "Could you find out the weather in {city}?",
        ),
        (("temperature", _number(-10, 38)), ("condition", lambda draw: draw.one(CONDITIONS))),
        "It is {temperature} degrees and {condition} in {city}.",
        "the weather",
    ),
    ToolKind(
        ("get_time", "get_current_time", "current_time", "local_time"),
        "Get the current local time in a city",
        (_CITY,),
        (
            "What time is it in {city}?",
            "What is the current time in {city}?",
            "What's the time in {city}?",
            "Tell me the time in {city}.",
            "Give me the time in {city}.",
            "What time is it now in {city}?",
            "What is the local time in {city}?",
            "Can you check the time in {city}?",
            "I need the time in {city}.",
            "Could you look up the time in {city}?",
            "Look up the local time in {city}.",
            "Find out what time it is in {city}.",
            "I'd like to know the time in {city}.",
            "Time in {city}?",
            "Please check the clock in {city}.",
            "How late is it right now in {city}?",
            "What does the clock show in {city}?",
            "I want to call someone in {city}. What time is it there?",
            "Get the current time for {city}.",
            "Can you find out what time it is in {city}?",
            "Show me the local time for {city}.",
            "What hour is it in {city} at the moment?",
            "People in {city}, what time do they have?",
        ),
        (("time", _clock),),
        "It is {time} in {city}.",
        "the time",
    ),
    ToolKind(
        ("get_stock_price", "stock_price", "get_quote"),
        "Get the current price of a stock",
        (Parameter("symbol", ("symbol", "ticker", "symbol"), _ticker),),
        (
            "What is the stock price of {symbol}?",
            "What does {symbol} trade at?",
            "How is {symbol} doing on the stock market?",
            "Get the price of {symbol}.",
            "What's {symbol} worth?",
            "How much is one share of {symbol}?",
            "Look up the stock {symbol}.",
            "What is the share price of {symbol}?",
            "Tell me the price of {symbol} stock.",
            "Could you look up the price of {symbol}?",
            "Can you check the stock {symbol}?",
            "Find out what {symbol} costs on the stock market.",
            "I'd like to know the share price of {symbol}.",
            "I need the current price of {symbol} shares.",
            "What do {symbol} shares cost?",
            "Please get me a quote for {symbol}.",
            "What price does {symbol} have at the moment?",
            "Check the {symbol} stock price.",
            "How much do I pay for a share of {symbol}?",
            "How high is the {symbol} stock today?",
            "{symbol} stock price?",
            "Show me the stock price for {symbol}.",
            "What is a {symbol} share worth right now?",
        ),
        (("price", _number(1, 999)),),
        "The price of {symbol} is {price}.",
        "prices",
    ),
    ToolKind(
        ("convert_currency", "currency_converter", "exchange"),
        "Convert an amount of money into another currency",
        (
            Parameter("amount", ("amount", "value", "amount"), _number(1, 999), "integer"),
            Parameter("source", ("from", "source", "from_currency"), _from(values.CURRENCIES)),
            Parameter("target", ("to", "target", "to_currency"), _from(values.CURRENCIES)),
        ),
        (
            "Convert {amount} {source} to {target}.",
            "How much is {amount} {source} in {target}?",
            "What is {amount} {source} in {target}?",
            "Change {amount} {source} into {target}.",
            "How many {target} do I get for {amount} {source}?",
            "Exchange {amount} {source} for {target}.",
            "I have {amount} {source}. How much is that in {target}?",
            "What are {amount} {source} worth in {target}?",
            "How many {target} do I receive for {amount} {source}?",
            "Can you convert {amount} {source} into {target}?",
            "{amount} {source} in {target}?",
            "I'd like to change {amount} {source} to {target}.",
            "Could you find out how much {amount} {source} is in {target}?",
            "Please turn {amount} {source} into {target}.",
            "If I change {amount} {source}, how many {target} is that?",
            "I need {amount} {source} converted to {target}.",
            "How many {target} are {amount} {source}?",
            "Look up what {amount} {source} makes in {target}.",
            "I want to exchange {amount} {source} for {target}.",
            "How many {target} can I buy with {amount} {source}?",
            "Tell me the value of {amount} {source} in {target}.",
            "For {amount} {source}, how many {target} would I get?",
        ),
        (("result", _number(1, 9999)),),
        "{amount} {source} is {result} {target}.",
    ),
    ToolKind(
        ("send_message", "send_email", "message"),
        "Send a message to a person",
        (
            Parameter("name", ("to", "recipient", "name"), person_name),
            Parameter("text", ("text", "message", "body"), _message),
        ),
        (
            "Send a message to {name}: {text}",
            "Send {name} a message: {text}",
            "Tell {name}: {text}",
            "Message {name}: {text}",
            "Write to {name}: {text}",
            "Send this to {name}: {text}",
            "Please send {name} this text: {text}",
            "Let {name} know: {text}",
            "Can you send a message to {name}? It says: {text}",
            "I'd like to send {name} this message: {text}",
            "Could you tell {name} this: {text}",
            "Please write {name} the following: {text}",
            "Text {name}: {text}",
            "I need to tell {name} something: {text}",
            "Please message {name} with these words: {text}",
            "Drop {name} a line: {text}",
            "Give {name} this message: {text}",
            "Could you let {name} know this: {text}",
            "Pass this on to {name}: {text}",
            "{name} should get this message: {text}",
            "Write a short message to {name}: {text}",
            "I want {name} to know this: {text}",
        ),
        (("status", lambda draw: "sent"),),
        "The message to {name} has been sent.",
    ),
    ToolKind(
        ("set_timer", "start_timer", "timer"),
        "Start a timer",
        (Parameter("minutes", ("minutes", "duration", "minutes"), _number(1, 120), "integer"),),
        (
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "I need a timer for {minutes} minutes.",
            "Please set a {minutes} minute timer.",
            "Timer for {minutes} minutes, please.",
            "Can you start a {minutes} minute timer?",
            "Remind me in {minutes} minutes.",
            "Could you set a timer of {minutes} minutes?",
            "I'd like a timer for {minutes} minutes.",
            "{minutes} minute timer.",
            "Let the timer run for {minutes} minutes.",
            "Please time {minutes} minutes for me.",
            "Tell me when {minutes} minutes are over.",
            "Can you wake me up in {minutes} minutes?",
            "Ring a bell after {minutes} minutes.",
            "Count down {minutes} minutes.",
            "I want to be reminded in {minutes} minutes.",
            "Could you start a countdown of {minutes} minutes?",
            "Please start the timer with {minutes} minutes.",
            "Let me know when {minutes} minutes have passed.",
            "Make it a timer of {minutes} minutes.",
        ),
        (("status", lambda draw: "started"),),
        "The timer is set for {minutes} minutes.",
    ),
    ToolKind(
        ("translate", "translate_text", "translator"),
        "Translate a text into another language",
        (
            Parameter("text", ("text", "phrase", "text"), _noun_phrase),
            Parameter("language", ("language", "target_language"), _from(values.LANGUAGES)),
        ),
        (
            'Translate "{text}" into {language}.',
            'How do you say "{text}" in {language}?',
            'What is "{text}" in {language}?',
            'Translate "{text}" to {language}.',
            'Put "{text}" into {language}.',
            'Please translate "{text}" to {language}.',
            'I need "{text}" in {language}.',
            'Can you translate "{text}" into {language}?',
            'Could you tell me how to say "{text}" in {language}?',
            'I would like to say "{text}" in {language}.',
            'What is the {language} word for "{text}"?',
            'How would you write "{text}" in {language}?',
            'Find out what "{text}" is called in {language}.',
            'Look up "{text}" in {language}.',
            '"{text}" in {language}?',
            'Please give me "{text}" in {language}.',
            'What do people say for "{text}" in {language}?',
            'I want to know the {language} for "{text}".',
            'Say "{text}" in {language}.',
            'Could you put "{text}" into {language} for me?',
            'I need a {language} translation of "{text}".',
            'Give me the {language} translation of "{text}".',
        ),
        (("translation", lambda draw: draw.pseudo_word()),),
        'In {language}, "{text}" is "{translation}".',
    ),
    ToolKind(
        ("search", "web_search", "search_web"),
        "Search the web",
        (Parameter("query", ("query", "q", "query"), _noun_phrase),),
        (
            "Search for {query}.",
            "Search the web for {query}.",
            "Look up {query} on the internet.",
            "Google {query}.",
            "Find something about {query}.",
            "Do a web search for {query}.",
            "Please search for {query}.",
            "Find information about {query}.",
            "Can you look up {query} online?",
            "Could you search the internet for {query}?",
            "I'd like you to search for {query} on the web.",
            "Look online for {query}.",
            "I need some information on {query} from the web.",
            "Please find pages about {query}.",
            "See what the internet says about {query}.",
            "Web search: {query}.",
            "Find out more about {query} online.",
            "What can you find about {query} on the web?",
            "Run a search for {query}.",
            "Could you google {query} for me?",
            "Show me search results for {query}.",
            "Search online for {query}, please.",
        ),
    ),
    ToolKind(
        ("play_music", "play_song", "play"),
        "Play a song",
        (Parameter("title", ("title", "song", "song"), _noun_phrase),),
        (
            "Play the song {title}.",
            "Play {title}.",
            "I want to hear {title}.",
            "Put on the song {title}.",
            "Please play {title}.",
            "Can you play {title}?",
            "Start the song {title}.",
            "Could you play the song {title}?",
            "I'd like to listen to {title}.",
            "Let me hear {title}.",
            "Can you put on {title}?",
            "I want to listen to the song {title}.",
            "Play me {title}, please.",
            "Please start playing {title}.",
            "I feel like hearing {title}.",
            "Turn on the song {title}.",
            "Would you play {title} for me?",
            "Let's listen to {title}.",
            "The next song should be {title}.",
            "Play the music {title}.",
            "Find the song {title} and play it.",
            "I'd love to hear the song {title}.",
        ),
        (("status", lambda draw: "playing"),),
        "Now playing {title}.",
    ),
    ToolKind(
        ("book_flight", "find_flight", "search_flights"),
        "Find a flight between two cities",
        (
            Parameter("source", ("from", "origin", "departure"), place_name),
            Parameter("target", ("to", "destination", "arrival"), place_name),
        ),
        (
            "Book a flight from {source} to {target}.",
            "I want to fly from {source} to {target}.",
            "Find a flight from {source} to {target}.",
            "I need a flight from {source} to {target}.",
            "Is there a flight from {source} to {target}?",
            "Get me a flight from {source} to {target}.",
            "Fly me from {source} to {target}.",
            "Can you find me a flight from {source} to {target}?",
            "Could you book me a flight from {source} to {target}?",
            "I'd like to fly from {source} to {target}.",
            "Look up flights from {source} to {target}.",
            "Please search for a flight from {source} to {target}.",
            "Flights from {source} to {target}?",
            "Which flights go from {source} to {target}?",
            "I have to travel by plane from {source} to {target}.",
            "Find out if there is a flight from {source} to {target}.",
            "When is there a plane from {source} to {target}?",
            "I'm looking for a flight from {source} to {target}.",
            "Show me a flight from {source} to {target}.",
            "How can I fly from {source} to {target}?",
            "Get me a plane ticket from {source} to {target}.",
            "I am in {source} and want to fly to {target}.",
        ),
        (("price", _number(40, 900)), ("time", _clock)),
        "There is a flight from {source} to {target} at {time} for {price} euros.",
    ),
    ToolKind(
        ("calculate", "calculator", "multiply"),
        "Multiply two numbers",
        (
            Parameter("a", ("a", "x", "first"), _number(21, 999), "integer"),
            Parameter("b", ("b", "y", "second"), _number(21, 999), "integer"),
        ),
        (
            "What is {a} times {b}?",
            "Calculate {a} * {b}.",
            "Multiply {a} by {b}.",
            "How much is {a} times {b}?",
            "Compute {a} times {b}.",
            "What's {a} x {b}?",
            "What is the product of {a} and {b}?",
            "Can you multiply {a} and {b}?",
            "Could you calculate {a} times {b}?",
            "Please work out {a} times {b}.",
            "I need the product of {a} and {b}.",
            "What do I get for {a} times {b}?",
            "{a} times {b}?",
            "Let the tool multiply {a} by {b}.",
            "I'd like to know what {a} times {b} is.",
            "Find out how much {a} x {b} is.",
            "What does {a} times {b} make?",
            "Use the calculator for {a} * {b}.",
            "Tell me the result of {a} times {b}.",
            "I want to know the product of {a} and {b}.",
            "What number is {a} multiplied by {b}?",
            "Calculate the product of {a} and {b}.",
        ),
        (("result", _number(441, 99999)),),
        "{a} \u00d7 {b} = {result}.",
    ),
)
GENERIC_VERBS = ("get", "find", "check", "lookup", "open", "delete", "create", "update", "read")
GENERIC_PARAMETERS = ("id", "name", "code", "key", "title", "label", "number")
GENERIC_ASKS = (
    "Use {tool} with {param} {value}.",
    "Call {tool} with {param} {value}.",
    "Please {verb} the {noun} with {param} {value}.",
    "{verb} the {noun} with the {param} {value}.",
    "I want you to {verb} the {noun} with {param} {value}.",
    "Please {verb} {noun} {value}.",
    "Can you {verb} the {noun} {value}?",
    "Call the tool {tool} for {value}.",
    "{verb} {noun} {value}.",
    "Run {tool} for {param} {value}.",
    "I need to {verb} the {noun} {value}.",
    "Could you {verb} the {noun} with {param} {value}?",
    "{verb} the {noun} whose {param} is {value}.",
    "Could you call {tool} with {value} as the {param}?",
    "Use the tool {tool} and set {param} to {value}.",
    "The {param} is {value}. Please {verb} the {noun}.",
    "I'd like you to {verb} the {noun} {value}.",
    "Please run {tool} with the {param} {value}.",
    "I need you to {verb} the {noun} that has {param} {value}.",
    "Set {param} to {value} and call {tool}.",
    "There is a {noun} with {param} {value}. Please {verb} it.",
    "Can you use {tool} for the {noun} {value}?",
    "Can you {verb} the {noun} with the {param} {value}?",
    "Would you {verb} {noun} {value}?",
)
GENERIC_FIELDS = ("status", "owner", "size", "colour", "price", "place", "date")


@dataclass(frozen=True)
class Call:
    """A drawn tool, the request for it, its arguments and the slots that replies use."""

    tool: Message
    request: str
    arguments: dict[str, str | int]
    result: dict[str, str | int]
    reply: str


def schema(name: str, description: str, parameters: list[tuple[str, str]]) -> Message:
    """Describe a tool in the OpenAI form; parameters are (name, JSON type)."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in parameters},
                "required": [key for key, _ in parameters],
            },
        },
    }


def draw_call(draw: Draw, kind: ToolKind) -> Call:
    """Draw a request for a tool of this kind."""
    index = draw.rng.randrange(12)
    names = [parameter.names[index % len(parameter.names)] for parameter in kind.parameters]
    slots = {parameter.slot: parameter.make(draw) for parameter in kind.parameters}
    arguments = dict(zip(names, slots.values(), strict=True))
    kinds = [parameter.kind for parameter in kind.parameters]
    tool = schema(draw.one(kind.names), kind.description, list(zip(names, kinds, strict=True)))
    result = {field: make(draw) for field, make in kind.fields}
    spoken = {key: str(value) for key, value in slots.items()}
    reply = kind.reply.format(**spoken, **result)
    return Call(tool, draw.say(kind.asks, **spoken), arguments, result, reply)


def draw_generic_call(draw: Draw) -> Call:
    """Draw a request for an invented tool, so that any name and parameter can be copied."""
    verb, noun = draw.one(GENERIC_VERBS), draw.value(values.NOUNS)
    param = draw.one(GENERIC_PARAMETERS)
    numeric = draw.chance(0.4)
    value: str | int = draw.number(1, 999) if numeric else draw.pseudo_word()
    name = f"{verb}_{noun}"
    tool = schema(name, f"{verb} a {noun}", [(param, "integer" if numeric else "string")])
    spoken = {"verb": "look up" if verb == "lookup" else verb, "noun": noun}
    request = draw.say(GENERIC_ASKS, tool=name, param=param, value=str(value), **spoken)
    field, content = draw.one(GENERIC_FIELDS), draw.pseudo_word()
    reply = f"The {field} of {noun} {value} is {content}."
    return Call(tool, request, {param: value}, {field: content}, reply)


def _any_call(draw: Draw) -> Call:
    if draw.chance(0.35):
        return draw_generic_call(draw)
    return draw_call(draw, draw.rng.choice(TOOL_KINDS))


def _tool_name(tool: Message) -> str:
    return str(tool["function"]["name"])


def _unlike(one: Message, other: Message) -> bool:
    return bool(one["name"] != other["name"] and one["description"] != other["description"])


def _with_others(draw: Draw, tool: Message, most: int = 2) -> tuple[Message, ...]:
    tools = [tool]
    for _ in range(draw.rng.choice((0, 0, 1, 1, most))):
        other = _any_call(draw).tool
        if all(_unlike(other["function"], tool["function"]) for tool in tools):
            tools.append(other)
    draw.rng.shuffle(tools)
    return tuple(tools)


def _call_message(draw: Draw, call: Call) -> Message:
    encoded = json.dumps(call.arguments, ensure_ascii=False)
    function = {
        "name": _tool_name(call.tool),
        "arguments": encoded if draw.chance(0.5) else call.arguments,
    }
    entry = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [entry]}


def tool_call(draw: Draw) -> Exchange:
    """Call the right tool, or refuse when no tool given can serve."""
    if draw.chance(0.1):
        return _missing_tool(draw)
    call = _any_call(draw)
    expected = json.dumps({"name": _tool_name(call.tool), "arguments": call.arguments})
    return Exchange(
        (user(call.request), _call_message(draw, call)),
        Check("tool", (expected,)),
        _with_others(draw, call.tool),
    )


def _missing_tool(draw: Draw) -> Exchange:
    kind = draw.rng.choice([kind for kind in TOOL_KINDS if kind.missing])
    request = draw_call(draw, kind).request
    tool = draw_generic_call(draw).tool
    reply = talk.NO_LIVE_DATA.format(what=kind.missing)
    return Exchange((user(request), assistant(reply)), REFUSAL, (tool,))


def tool_answer(draw: Draw) -> Exchange:
    """Call a tool and answer from its result."""
    call = _any_call(draw)
    while not call.reply:
        call = _any_call(draw)
    result, reply = json.dumps(call.result, ensure_ascii=False), call.reply
    expected = tuple(str(value) for value in call.result.values())
    if draw.chance(0.08):
        cause = draw.one(("not found", "timeout", "not allowed", "no connection"))
        result, reply = json.dumps({"error": cause}), f"I'm sorry, the tool failed: {cause}."
        expected = (cause,)
    elif set(call.result) == {"status"} and call.result["status"] in ("sent", "started", "playing"):
        expected = (reply,)
    returned = {"role": "tool", "tool_call_id": "call_1", "content": result}
    return Exchange(
        (user(call.request), _call_message(draw, call), returned, assistant(reply)),
        Check("contains", expected),
        _with_others(draw, call.tool, most=1),
    )
