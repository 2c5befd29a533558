"""Instructor: objects by schema and by tool, whole and partial."""

# mypy: ignore-errors

import instructor
from openai import OpenAI
from shared import CHAT, MAX_TOKENS, PROMPT, Weather, tell

asked = {
    "model": CHAT,
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": MAX_TOKENS,
    "max_retries": 0,
    "temperature": 0,
}
found = {}
for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT):
    client = instructor.from_openai(OpenAI(), mode=mode)
    one = {} if mode is instructor.Mode.JSON_SCHEMA else {"parallel_tool_calls": False}
    weather, raw = client.chat.completions.create_with_completion(
        response_model=Weather, **asked, **one
    )
    found[mode.name] = {
        "weather": weather.model_dump(),
        "finish_reason": raw.choices[0].finish_reason,
        "total_tokens": raw.usage.total_tokens,
    }
client = instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
partial = list(client.chat.completions.create_partial(response_model=Weather, **asked))
tell(found=found, last=partial[-1].model_dump())
