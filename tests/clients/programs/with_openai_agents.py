"""OpenAI's Agents SDK over `chat` or `responses`: a typed output, a tool that has to be called."""

# mypy: ignore-errors

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)
from openai import AsyncOpenAI
from shared import CHAT, MAX_TOKENS, PROMPT, Weather, tell

kind = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}[sys.argv[1]]
model = kind(model=CHAT, openai_client=AsyncOpenAI(max_retries=0))
settings = {"max_tokens": MAX_TOKENS, "temperature": 0}
cities = []


@function_tool
def look_up(weather: Weather) -> str:
    """Look up the weather."""
    cities.append(weather.city)
    return "fine"


typed = Agent(
    name="typed", model=model, output_type=Weather, model_settings=ModelSettings(**settings)
)
forced = Agent(
    name="forced",
    model=model,
    tools=[look_up],
    tool_use_behavior="stop_on_first_tool",
    model_settings=ModelSettings(tool_choice="required", parallel_tool_calls=False, **settings),
)


async def main() -> None:
    """Run each agent."""
    structured = (await Runner.run(typed, PROMPT)).final_output
    whole = (await Runner.run(forced, PROMPT)).final_output
    run = Runner.run_streamed(forced, PROMPT)
    kinds = [event.type async for event in run.stream_events()]
    tell(
        structured=structured.model_dump(),
        whole=whole,
        streamed=run.final_output,
        cities=cities,
        kinds=kinds,
    )


asyncio.run(main())
