// What must compile under `strict`, and what must not. Copied as .cts too, for CommonJS.
import {
  APIError,
  OMAi,
  OMAiError,
  RateLimitError,
  type ClientOptions,
  type OpenAI,
  type RerankResponse,
  type UsageRow,
} from 'omai';

const options: ClientOptions = { apiKey: 'key', timeout: 1000, fetch, logLevel: 'debug' };
const omai: OpenAI = new OMAi(options);
new OMAi();
new OMAi({ username: 'ada', password: 'secret', fetchOptions: { keepalive: true } });
new OMAi({ apiKey: async () => 'key', dangerouslyAllowBrowser: true });

// @ts-expect-error: OpenAI's own
new OMAi({ organization: 'org' });
// @ts-expect-error
new OMAi({ apiKey: 1 });

export async function use(client: OMAi): Promise<number> {
  const messages: OpenAI.Chat.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Hello!' }];
  const answer = await client.chat.completions.create({ model: 'omai-gpt-4', messages });
  const text: string | null | undefined = answer.choices[0]?.message.content;
  const stream = await client.chat.completions.create({ model: 'omai-gpt-4', messages, stream: true });
  for await (const chunk of stream) text?.concat(chunk.choices[0]?.delta.content ?? '');

  const { data: usage, request_id } = await client.usage
    .list({ bucket_width: '1d', group_by: ['model', 'key'] }, { timeout: 1000 })
    .withResponse();
  const row: UsageRow | undefined = usage.data[0];
  const id: string | null | undefined = request_id;
  // @ts-expect-error: not offered
  await client.usage.list({ group_by: 'account' });

  const ranked: RerankResponse = await client.rerank({ model: 'm', query: 'q', documents: ['a'], top_n: 1 });
  const best: string | undefined = ranked.results[0]?.document?.text;
  const scores = await client.score({ model: 'm', text_1: 'a', text_2: ['b'] });
  const score: number | undefined = scores.data[0]?.score;
  // @ts-expect-error: the query is missing
  await client.rerank({ model: 'm', documents: [] });

  const tokens = await client.tokenize({ model: 'm', messages });
  await client.tokenize({ model: 'm', prompt: 'a' });
  // @ts-expect-error: one of them only
  await client.tokenize({ model: 'm', prompt: 'a', messages });
  const { prompt } = await client.detokenize({ model: 'm', tokens: tokens.tokens });

  const changed: OMAi = client.withOptions({ username: 'ada', password: 'secret' });
  const nothing: void = await changed.logout();

  try {
    await client.models.list({ signal: AbortSignal.timeout(1) });
  } catch (error) {
    if (error instanceof RateLimitError) return Number(error.headers.get('retry-after'));
    if (error instanceof OMAi.AuthenticationError) return error.status;
    if (error instanceof APIError) return error.status ?? 0;
    if (error instanceof OMAiError) throw error satisfies OMAiError;
  }
  return [omai, row, id, best, score, prompt, nothing].length;
}
