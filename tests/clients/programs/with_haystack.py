"""Haystack: a generator, whole and streamed, and embedders."""

# mypy: ignore-errors

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from shared import BASE_URL, CHAT, EMBEDDING, MAX_TOKENS, PROMPT, TEXTS, Weather, tell

messages = [ChatMessage.from_user(PROMPT)]
short = {"temperature": 0, "max_tokens": 12}
generator = OpenAIChatGenerator(model=CHAT, api_base_url=BASE_URL, generation_kwargs=short)
(whole,) = generator.run(messages)["replies"]
parts = []
(streamed,) = generator.run(messages, streaming_callback=lambda part: parts.append(part.content))[
    "replies"
]
tool = Tool(
    name="weather",
    description="Tells the weather.",
    parameters=Weather.model_json_schema(),
    function=lambda **_: "fine",
)
forced = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": MAX_TOKENS}
(called,) = generator.run(messages, tools=[tool], generation_kwargs=forced)["replies"]
embedder = OpenAIDocumentEmbedder(model=EMBEDDING, api_base_url=BASE_URL, progress_bar=False)
documents = embedder.run([Document(content=text) for text in TEXTS])["documents"]
query = OpenAITextEmbedder(model=EMBEDDING, api_base_url=BASE_URL).run(TEXTS[0])
tell(
    text=whole.text,
    streamed_text=streamed.text,
    parts="".join(parts),
    usage=whole.meta["usage"],
    finish_reason=whole.meta["finish_reason"],
    call={"name": called.tool_call.tool_name, "arguments": called.tool_call.arguments},
    vectors=[document.embedding for document in documents],
    query=query["embedding"],
)
