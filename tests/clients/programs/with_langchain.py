"""LangChain: whole and streamed answers, tools, structured outputs, embeddings."""

# mypy: ignore-errors

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from shared import CHAT, EMBEDDING, MAX_TOKENS, PROMPT, TEXTS, Weather, tell

model = ChatOpenAI(model=CHAT, temperature=0, max_tokens=MAX_TOKENS, stream_usage=True)
short = model.bind(max_tokens=12)
whole = short.invoke(PROMPT)
streamed = None
for chunk in short.stream(PROMPT):
    streamed = chunk if streamed is None else streamed + chunk
forced = model.bind_tools([Weather], tool_choice="Weather", parallel_tool_calls=False)
(call,) = forced.invoke(PROMPT).tool_calls
streamed_call = None
for chunk in forced.stream(PROMPT):
    streamed_call = chunk if streamed_call is None else streamed_call + chunk
structured = [
    model.with_structured_output(Weather, method=method).invoke(PROMPT).model_dump()
    for method in ("json_schema", "function_calling")
]
# LangChain would otherwise count, and send, the token ids of another model's tokenizer.
embeddings = OpenAIEmbeddings(model=EMBEDDING, check_embedding_ctx_length=False)
tell(
    text=whole.content,
    streamed_text=streamed.content,
    usage=whole.usage_metadata,
    streamed_usage=streamed.usage_metadata,
    finish_reason=whole.response_metadata["finish_reason"],
    call=call,
    streamed_call=streamed_call.tool_calls[0],
    structured=structured,
    vectors=embeddings.embed_documents(TEXTS),
    query=embeddings.embed_query(TEXTS[0]),
)
