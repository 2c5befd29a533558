"""LiteLLM as a client: whole, streamed, tools, schema, embeddings, its error classes."""

# mypy: ignore-errors

import litellm
from shared import BASE_URL, CHAT, EMBEDDING, KEY, MAX_TOKENS, PROMPT, TEXTS, Weather, tell

litellm.suppress_debug_info = True
asked = {
    "model": f"openai/{CHAT}",
    "messages": [{"role": "user", "content": PROMPT}],
    "api_base": BASE_URL,
    "api_key": KEY,
    "max_retries": 0,
    "temperature": 0,
}
tool = {
    "type": "function",
    "function": {"name": "weather", "parameters": Weather.model_json_schema()},
}
whole = litellm.completion(**asked, max_tokens=12)
options = {"include_usage": True}
chunks = list(litellm.completion(**asked, max_tokens=12, stream=True, stream_options=options))
rebuilt = litellm.stream_chunk_builder(chunks)
called = litellm.completion(
    **asked, max_tokens=MAX_TOKENS, tools=[tool], tool_choice="required", parallel_tool_calls=False
)
structured = litellm.completion(**asked, max_tokens=MAX_TOKENS, response_format=Weather)
vectors = litellm.embedding(
    f"openai/{EMBEDDING}", TEXTS, api_base=BASE_URL, api_key=KEY, encoding_format="float"
)
errors = {}
for name, change in (
    ("invalid", {"top_p": 2}),
    ("absent", {"model": "openai/gpt-9"}),
    ("unknown", {"api_key": "omai-sk-wrong"}),
    ("long", {"max_tokens": 100_000}),
):
    try:
        litellm.completion(**{**asked, **change})
    except Exception as error:
        errors[name] = type(error).__name__
tell(
    text=whole.choices[0].message.content,
    streamed_text=rebuilt.choices[0].message.content,
    tokens=whole.usage.total_tokens,
    streamed_tokens=rebuilt.usage.total_tokens,
    arguments=called.choices[0].message.tool_calls[0].function.arguments,
    finish_reason=called.choices[0].finish_reason,
    structured=structured.choices[0].message.content,
    vectors=[item["embedding"] for item in vectors.data],
    errors=errors,
)
