"""Messages to a prompt: a checkpoint's own chat template, rendered without transformers.

The environment is the one that templates are written for (transformers' chat templates): a jinja
sandbox with trimmed blocks, loop controls, `raise_exception`, `strftime_now`, `tojson`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from omai_ray.errors import CheckpointError, InvalidRequest
from omai_ray.text.tokenizer import TextTokenizer, longest_context

# A Unicode noncharacter: it separates what must not join into a control token, and is never text.
_BREAK = "\ufdd0"

Message = Mapping[str, Any]


class ChatTokenizer:
    """A chat checkpoint's tokenizer and template.

    Text of a message that looks like a control token (`<|im_start|>`) is encoded as plain text,
    so that no message can open a turn of its own. context: most tokens of prompt and completion.
    Raises CheckpointError for no template.
    """

    def __init__(self, directory: Path, context: int | None = None) -> None:
        self.text = TextTokenizer(directory)
        self.context = longest_context(directory, self.text, context)
        self._template = _compile(_read_template(directory, self.text.config))
        self._specials = _special_tokens(self.text.config)
        added = self.text.backend.get_added_tokens_decoder().values()
        names = [token.content for token in added if len(token.content) > 1]
        longest_first = sorted(names, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """Return the ids of the prompt that asks for the assistant's next message.

        messages in the OpenAI form; content a string, null or a list of text parts. Raises
        InvalidRequest where the template rejects them (roles it does not know, wrong order).
        """
        try:
            prompt = self._template.render(
                messages=self._disarm([_plain(message) for message in messages]),
                tools=self._disarm(list(tools)) if tools else None,
                add_generation_prompt=True,
                **self._specials,
            )
        except RecursionError:
            raise InvalidRequest(
                "Invalid 'messages': a tool's parameters or a call's arguments are nested too "
                "deeply.",
                param="messages",
            ) from None
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"Invalid 'messages': the model's chat template rejects them: {error}",
                param="messages",
            ) from None
        # JSON text inside a message can escape half a surrogate pair, which is no text.
        pieces = prompt.encode("utf-8", "replace").decode("utf-8").split(_BREAK)
        encoded = self.text.encode_batch(pieces, special_tokens=False)
        return list(chain.from_iterable(encoded))

    def _disarm(self, value: Any) -> Any:
        """Break every control token in a message's strings, and in keys that are no names."""
        if isinstance(value, str):
            return self._control.sub(
                lambda found: found[0][0] + _BREAK + found[0][1:], value.replace(_BREAK, "")
            )
        if isinstance(value, list):
            return [self._disarm(item) for item in value]
        if isinstance(value, dict):
            return {
                key if key.isidentifier() else self._disarm(key): self._disarm(item)
                for key, item in value.items()
            }
        return value


class _Generation(Extension):
    """`{% generation %}` marks assistant text for training; here it only passes it on."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the block's statements, the tag itself dropped."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise CheckpointError(f"the chat template does not compile: {error}") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


def _read_template(directory: Path, config: Mapping[str, Any]) -> str:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        raise CheckpointError(
            f"{directory}: no chat template (chat_template.jinja), so it cannot take messages; "
            "use the model's instruction-tuned version"
        )
    return template


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return bos_token, eos_token and the like, which templates write by name."""
    specials = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            specials[name] = content
    return specials


def _plain(message: Message) -> dict[str, Any]:
    """Return the message as templates expect it: content a string, tool arguments an object."""
    plain = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):
        plain["content"] = "\n".join(part["text"] for part in content)
    else:
        plain["content"] = content or ""
    if "tool_calls" in plain:
        plain["tool_calls"] = [_plain_call(call) for call in plain["tool_calls"]]
    return plain


def _plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    # Not JSON, or too deep: the template gets the text as it is.
    with contextlib.suppress(ValueError, RecursionError):
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}
