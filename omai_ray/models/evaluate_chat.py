"""Measure the demonstration chat model on held-out dialogues, skill by skill.

Run as `python -m omai_ray.models.evaluate_chat`. Replies are generated greedily in float32.
The exit status is 1 where overall accuracy is below PASS_ACCURACY.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from omai_ray.models import CHAT_MODEL_DIR
from omai_ray.models.chat_tokens import CONTEXT_TOKENS
from omai_ray.models.dialogues import SKILLS, dialogues
from omai_ray.models.samples import Check, Dialogue

PASS_ACCURACY = 0.90
EVALUATION_SEED = 20_000_003
REPLY_TOKENS = 96
LONG_PROMPT_TOKENS = (1500, CONTEXT_TOKENS - REPLY_TOKENS)
BATCH_TOKENS = 24_000
LONGEST_SHORT_REPLY_WORDS = 25
GREETING = re.compile(r"(Hello|Hi|Hey|Good (morning|afternoon|evening)|Nice to meet you)\b")
REFUSAL = re.compile(r"(I'm sorry|You haven't told me)\b")
TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """What the model said, without special tokens, and whether it ended its turn itself."""

    text: str
    finished: bool


def has_word(text: str, word: str) -> bool:
    """Tell whether text has a word or phrase standing apart from other letters and digits."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _equal(check: Check, text: str) -> bool:
    return text == check.expected[0]


def _value(check: Check, text: str) -> bool:
    right = all(has_word(text, word) for word in check.expected)
    return right and not any(has_word(text, word) for word in check.forbidden)


def _number(check: Check, text: str) -> bool:
    found = re.findall(r"-?\d+", text.split("=")[-1])
    return found[-1:] == [check.expected[0]]


def _contains(check: Check, text: str) -> bool:
    right = all(part in text for part in check.expected)
    return right and not any(part in text for part in check.forbidden)


def _greeting(check: Check, text: str) -> bool:
    short = len(text.split()) <= LONGEST_SHORT_REPLY_WORDS
    return bool(GREETING.match(text)) and short and text[-1] in ".!?" and _contains(check, text)


def _refusal(check: Check, text: str) -> bool:
    short = len(text.split()) <= LONGEST_SHORT_REPLY_WORDS
    plain = not re.search(r"\d|<tool_call>", text)
    return bool(REFUSAL.match(text)) and short and plain and _contains(check, text)


def _tool(check: Check, text: str) -> bool:
    match = TOOL_CALL.fullmatch(text)
    if match is None:
        return False
    try:
        return bool(json.loads(match[1]) == json.loads(check.expected[0]))
    except json.JSONDecodeError:
        return False


GRADERS: dict[str, Callable[[Check, str], bool]] = {
    "equal": _equal,
    "value": _value,
    "number": _number,
    "contains": _contains,
    "greeting": _greeting,
    "refusal": _refusal,
    "tool": _tool,
}


def grade(check: Check, reply: Reply) -> bool:
    """Grade one reply; one that is empty or does not end its turn is wrong."""
    return reply.finished and bool(reply.text) and GRADERS[check.kind](check, reply.text)


def prompt_of(tokenizer: Any, dialogue: Dialogue) -> list[int]:
    """Tokenise everything before the graded turn, ready for the reply."""
    text = tokenizer.apply_chat_template(
        list(dialogue.messages[:-1]),
        tools=list(dialogue.tools) or None,
        tokenize=False,
        add_generation_prompt=True,
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    return ids


def heldout(tokenizer: Any, skill: str, count: int) -> list[tuple[Dialogue, list[int]]]:
    """Generate held-out dialogues of a skill with their prompts; long ones are near the limit."""
    low, high = LONG_PROMPT_TOKENS if skill == "long" else (0, CONTEXT_TOKENS - REPLY_TOKENS)
    kept: list[tuple[Dialogue, list[int]]] = []
    for dialogue in dialogues(EVALUATION_SEED, "heldout", count * 40, skill):
        prompt = prompt_of(tokenizer, dialogue)
        if low <= len(prompt) <= high:
            kept.append((dialogue, prompt))
        if len(kept) == count:
            break
    return kept


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[Reply]:
    """Generate greedy replies to tokenised prompts, in the order given."""
    replies = [Reply("", False)] * len(prompts)
    for batch in _batches([len(prompt) for prompt in prompts]):
        width = max(len(prompts[index]) for index in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for line, index in enumerate(batch):
            ids[line, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[line, width - len(prompts[index]) :] = 1
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=REPLY_TOKENS, do_sample=False
        )
        for line, index in enumerate(batch):
            new = made[line, width:]
            text = tokenizer.decode(new, skip_special_tokens=True)
            replies[index] = Reply(text, tokenizer.eos_token_id in new)
    return replies


def load(folder: Path) -> tuple[Any, Any]:
    """Load (model, tokenizer), the model in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    return model, AutoTokenizer.from_pretrained(folder)


def evaluate(
    folder: Path, per_skill: int, skills: Sequence[str] = SKILLS, failures_shown: int = 0
) -> dict[str, float]:
    """Give the accuracy of each skill on `per_skill` held-out dialogues each."""
    model, tokenizer = load(folder)
    accuracy: dict[str, float] = {}
    for skill in skills:
        cases = heldout(tokenizer, skill, per_skill)
        replies = generate(model, tokenizer, [prompt for _, prompt in cases])
        graded = [grade(case.check, reply) for (case, _), reply in zip(cases, replies, strict=True)]
        accuracy[skill] = sum(graded) / len(graded)
        wrong = [index for index, right in enumerate(graded) if not right]
        for index in wrong[:failures_shown]:
            case = cases[index][0]
            asked = [
                str(message["content"]) for message in case.messages if message["role"] == "user"
            ]
            print(f"[{skill}] {asked[-1]!r} -> {replies[index].text!r}, expected {case.check}")
    return accuracy


def main(arguments: list[str] | None = None) -> int:
    """Evaluate, print the table and a JSON line, and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=CHAT_MODEL_DIR)
    parser.add_argument("--per-skill", type=int, default=150)
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument("--show-failures", type=int, default=0, help="failures to print per skill")
    options = parser.parse_args(arguments)
    accuracy = evaluate(options.model, options.per_skill, options.skills, options.show_failures)
    overall = sum(accuracy.values()) / len(accuracy)
    print("| skill | accuracy |\n|---|---|")
    for skill, value in accuracy.items():
        print(f"| {skill} | {value:.1%} |")
    print(f"| **overall** | **{overall:.1%}** |")
    rounded = {skill: round(value, 4) for skill, value in accuracy.items()}
    print(json.dumps({"overall": round(overall, 4), "per_skill": options.per_skill, **rounded}))
    return 0 if overall >= PASS_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
