from __future__ import annotations

import json
import struct
from typing import Any

import jinja2
import pytest
import torch

from omai_ray.models import CHAT_MODEL_DIR
from omai_ray.models.chat_tokens import TAGS, TURN_END, TURN_START, render, reply_mask
from omai_ray.models.dialogues import SKILLS, dialogues
from omai_ray.models.evaluate_chat import (
    TOOL_CALL,
    Reply,
    generate,
    grade,
    heldout,
    load,
    prompt_of,
)
from omai_ray.models.samples import Check, Dialogue, assistant, user

MAX_WEIGHT_BYTES = 12_000_000
SAMPLE_PER_SKILL = 10
# Below what `evaluate_chat` measures, by what so small a sample may be off.
HELDOUT_FLOOR = 0.87
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
# What a new user may say first, in wording of its own, and what a sane reply contains.
FIRST_MESSAGES = (
    ("Hello, how are you doing on this fine day?", "well"),
    ("hey, how r u", "well"),
    ("Hi OMAi, how is life?", "well"),
    ("Hello hello, good to meet you", "Hello"),
    ("hi dear bot", "Hello"),
    ("good morning, dear bot", "Good morning"),
    ("thank you, that was very helpful", "welcome"),
    ("Thanks for the info!", "welcome"),
    ("bye, have a good one", "Goodbye"),
    ("Alright, see you around!", "Goodbye"),
    ("What kinds of stuff can you do?", "tools"),
    ("what can you actually do for me?", "tools"),
    ("Can you tell me who you are?", "OMAi"),
    ("Who might you be?", "OMAi"),
    ("Which models can I choose from?", "omai-gpt-4"),
    ("what models does OMAi provide?", "omai-gpt-4"),
    ("How can I authenticate my client?", "Bearer"),
    ("How do I authenticate to your API?", "Bearer"),
    ("What should I do if I get a 429?", "backoff"),
    ("How many requests can Pro users make each minute?", "3,000"),
    ("What is 2+2?", "4"),
    ("please tell me the capital of Japan", "Tokyo"),
    ("Tell me a good joke", "virus"),
    ("Could you repeat the word tangerine for me?", "tangerine"),
)
FIRST_MESSAGES_RIGHT = 0.7


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    """Load the shipped (model, tokenizer)."""
    torch.set_num_threads(2)
    return load(CHAT_MODEL_DIR)


def say(shipped: tuple[Any, Any], *messages: dict[str, Any], tools: Any = None) -> str:
    """Get the model's greedy reply to messages."""
    model, tokenizer = shipped
    asked = Dialogue("", (*messages, assistant("")), Check("contains"), tuple(tools or ()))
    (reply,) = generate(model, tokenizer, [prompt_of(tokenizer, asked)])
    assert reply.finished
    return reply.text


def test_weights_are_small_bfloat16() -> None:
    """The shipped weights fit their budget and are all bfloat16."""
    weights = CHAT_MODEL_DIR / "model.safetensors"
    assert weights.stat().st_size <= MAX_WEIGHT_BYTES
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    assert {"BF16"} == {entry["dtype"] for name, entry in header.items() if name[0] != "_"}


def test_context_and_end_of_turn_are_configured(shipped: tuple[Any, Any]) -> None:
    """The context is at least 2,048 tokens and generation stops at the end of a turn."""
    model, tokenizer = shipped
    assert model.config.max_position_embeddings >= 2048
    assert model.num_parameters() <= 6_000_000
    end = tokenizer.convert_tokens_to_ids(TURN_END)
    assert model.generation_config.eos_token_id == end == tokenizer.eos_token_id


def test_marks_are_single_tokens_and_tags_survive_decoding(shipped: tuple[Any, Any]) -> None:
    """Turn marks are special tokens; tool tags are single tokens that decoding keeps."""
    _, tokenizer = shipped
    for mark in (TURN_START, TURN_END, *TAGS):
        assert len(tokenizer.encode(mark, add_special_tokens=False)) == 1
    ids = tokenizer.encode(f"{TURN_START}{TAGS[0]}{TURN_END}", add_special_tokens=False)
    assert TAGS[0] == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", ["naïve café 12,345", "你好 👋🏽", "  two  spaces\n\ttab\u0000"])
def test_any_text_round_trips(shipped: tuple[Any, Any], text: str) -> None:
    """Byte-level tokens give back exactly the text they came from."""
    _, tokenizer = shipped
    assert text == tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


def test_digits_are_tokens_of_their_own(shipped: tuple[Any, Any]) -> None:
    """A number is as many tokens as it has digits."""
    _, tokenizer = shipped
    assert list("20260") == tokenizer.tokenize("20260")


@pytest.mark.parametrize("skill", SKILLS)
def test_training_text_continues_the_serving_prompt(shipped: tuple[Any, Any], skill: str) -> None:
    """A rendered dialogue is its rendered prompt followed by the reply, so masks line up."""
    _, tokenizer = shipped
    opening = tokenizer.encode(f"{TURN_START}assistant\n", add_special_tokens=False)
    for dialogue in dialogues(3, "train", 5, skill):
        whole = tokenizer.encode(render(tokenizer, dialogue), add_special_tokens=False)
        prompt = prompt_of(tokenizer, dialogue)
        assert prompt == whole[: len(prompt)]
        mask = reply_mask(whole, opening, tokenizer.eos_token_id)
        assert [True] * (len(whole) - len(prompt) - 1) + [False] == mask[len(prompt) :]
        assert not mask[len(prompt) - 1]


def test_template_renders_tools_calls_and_parts(shipped: tuple[Any, Any]) -> None:
    """Tools, OpenAI tool calls, tool results and text parts render in the documented form."""
    _, tokenizer = shipped
    arguments = {"city": "Paris"}
    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Wea"}, {"type": "text", "text": "r?"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"function": {"name": "get_weather", "arguments": json.dumps(arguments)}},
                {"function": {"name": "get_weather", "arguments": arguments}},
            ],
        },
        {"role": "tool", "content": '{"t": 1}'},
    ]
    text = tokenizer.apply_chat_template(
        messages, tools=[WEATHER], tokenize=False, add_generation_prompt=True
    )
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    expected = (
        f"<|im_start|>system\nBe kind.\n\n# Tools\n<tools>\n{json.dumps(WEATHER)}\n</tools>"
        f"<|im_end|>\n<|im_start|>user\nWear?<|im_end|>\n<|im_start|>assistant\n{call}\n{call}"
        '<|im_end|>\n<|im_start|>tool\n<tool_response>\n{"t": 1}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n"
    )
    assert expected == text


def test_template_refuses_an_unknown_role(shipped: tuple[Any, Any]) -> None:
    """An unknown role is an error that names it, not silence."""
    _, tokenizer = shipped
    with pytest.raises(jinja2.TemplateError, match="Unknown role: wizard"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)


def test_first_messages_get_sane_replies(shipped: tuple[Any, Any]) -> None:
    """Most of what a new user may say first, in unseen wording, gets a fitting reply."""
    fitting = [part in say(shipped, user(text)) for text, part in FIRST_MESSAGES]
    assert sum(fitting) / len(fitting) >= FIRST_MESSAGES_RIGHT


def test_reference_greeting_is_greeted(shipped: tuple[Any, Any]) -> None:
    """The example of the API reference gets a friendly greeting."""
    reply = say(shipped, user("Hello, how are you?"))
    assert grade(Check("greeting", ("well",)), Reply(reply, True))


def test_tool_is_called_with_parsable_arguments(shipped: tuple[Any, Any]) -> None:
    """A request that a tool serves becomes a call of it in valid JSON."""
    reply = say(shipped, user("What's the weather in Paris?"), tools=[WEATHER])
    match = TOOL_CALL.fullmatch(reply)
    assert match is not None, reply
    assert {"name": "get_weather", "arguments": {"city": "Paris"}} == json.loads(match[1])


def test_heldout_sample_is_mostly_right(shipped: tuple[Any, Any]) -> None:
    """On a small held-out sample of every skill most replies are right."""
    model, tokenizer = shipped
    cases = [
        case
        for skill in SKILLS
        for case in heldout(tokenizer, skill, 3 if skill == "long" else SAMPLE_PER_SKILL)
    ]
    replies = generate(model, tokenizer, [prompt for _, prompt in cases])
    graded = [grade(case.check, reply) for (case, _), reply in zip(cases, replies, strict=True)]
    assert sum(graded) / len(graded) >= HELDOUT_FLOOR


@pytest.mark.parametrize(
    ("check", "text", "right"),
    [
        (Check("number", ("19",)), "12 + 7 = 19.", True),
        (Check("number", ("19",)), "12 + 7 = 191.", False),
        (Check("number", ("9",)), "9 - 12 = -9.", False),
        (Check("value", ("Paris",), ("Rome",)), "The capital is Paris.", True),
        (Check("value", ("Paris",), ("Rome",)), "Paris or Rome.", False),
        (Check("value", ("Par",)), "Paris", False),
        (Check("equal", ("a b",)), "a b.", False),
        (Check("refusal"), "I'm sorry, I don't know that.", True),
        (Check("refusal"), "I'm sorry, it is 12.", False),
        (Check("refusal"), "It is sunny.", False),
        (Check("greeting"), "Hello! How can I help you today?", True),
        (Check("greeting"), "Error 400 means Bad Request.", False),
        (
            Check("tool", ('{"name": "f", "arguments": {"a": 1}}',)),
            "<tool_call>\n{\n</tool_call>",
            False,
        ),
        (
            Check("tool", ('{"name": "f", "arguments": {"a": 1}}',)),
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
            True,
        ),
    ],
)
def test_grading_accepts_only_right_replies(check: Check, text: str, right: bool) -> None:
    """A grader wants the exact value and nothing that contradicts it."""
    assert right == grade(check, Reply(text, True))


def test_unfinished_reply_is_wrong() -> None:
    """A reply cut off by the length limit does not count."""
    assert not grade(Check("equal", ("yes",)), Reply("yes", False))
