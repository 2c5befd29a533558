"""LlamaIndex's OpenAI-like models: completion, chat, streams, tools, embeddings."""

# mypy: ignore-errors

from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from shared import BASE_URL, CHAT, EMBEDDING, KEY, MAX_TOKENS, PROMPT, TEXTS, Weather, tell

server = {"api_base": BASE_URL, "api_key": KEY, "max_retries": 0}
model = OpenAILike(
    model=CHAT,
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=1000,
    temperature=0.0,
    max_tokens=12,
    **server,
)
messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(content=PROMPT)]
chat = model.chat(messages)
streamed = list(model.stream_chat(messages))
patient = model.model_copy(update={"max_tokens": MAX_TOKENS})
program = FunctionCallingProgram.from_defaults(
    output_cls=Weather, llm=patient, prompt_template_str=PROMPT, tool_required=True
)
called = program()
embedding = OpenAILikeEmbedding(model_name=EMBEDDING, embed_batch_size=2, **server)
tell(
    text=chat.message.content,
    streamed_text=streamed[-1].message.content,
    completed=model.complete(PROMPT).text,
    usage=chat.additional_kwargs,
    called=(called[0] if isinstance(called, list) else called).model_dump(),
    vectors=embedding.get_text_embedding_batch(TEXTS),
    query=embedding.get_query_embedding(TEXTS[0]),
)
