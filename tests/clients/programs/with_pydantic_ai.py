"""Pydantic AI over `chat` or `responses`: text, a stream, outputs by schema and by tool."""

# mypy: ignore-errors

import asyncio
import sys

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from shared import CHAT, MAX_TOKENS, PROMPT, Weather, tell

model = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[sys.argv[1]](CHAT)


async def structured(output: object) -> dict[str, object]:
    """Return an object, got in one way."""
    agent = Agent(model, output_type=output, model_settings={"max_tokens": MAX_TOKENS})
    return (await agent.run(PROMPT)).output.model_dump()


async def main() -> None:
    """Ask in each way."""
    agent = Agent(model, model_settings={"max_tokens": 20})
    text = await agent.run(PROMPT)
    async with agent.run_stream(PROMPT) as run:
        parts = [part async for part in run.stream_text(delta=True, debounce_by=None)]
    usage = text.usage
    tell(
        text=text.output,
        streamed_text="".join(parts),
        tokens=[usage.input_tokens, usage.output_tokens],
        structured=[await structured(kind(Weather)) for kind in (NativeOutput, ToolOutput)],
    )


asyncio.run(main())
