// OpenAI's client for Node. Arguments: the folder that it is installed in, and its name there.
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, name] = process.argv.slice(2);
const require = createRequire(path.join(path.resolve(folder), 'package.json'));
const { default: OpenAI } = await import(pathToFileURL(require.resolve(name)));

const client = new OpenAI({ maxRetries: 0 });
const CHAT = 'omai-gpt-4';
const EMBEDDING = 'text-embedding-ada-002';
const messages = [{ role: 'user', content: 'Hello, how are you?' }];
const greedy = { model: CHAT, messages, temperature: 0, max_tokens: 12 };
const weather = {
  type: 'object',
  properties: { city: { enum: ['Rome', 'Oslo'] }, hot: { type: 'boolean' } },
  required: ['city', 'hot'],
  additionalProperties: false,
};

async function chat() {
  const whole = await client.chat.completions.create(greedy);
  let streamed = '';
  let usage = null;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ ...greedy, ...options })) {
    streamed += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  const helper = await client.chat.completions.stream(greedy).finalChatCompletion();
  return {
    text: whole.choices[0].message.content,
    streamed,
    helper: helper.choices[0].message.content,
    tokens: [whole.usage.total_tokens, usage.total_tokens],
  };
}

async function tools() {
  const cities = [];
  const tool = {
    type: 'function',
    function: {
      name: 'look_up',
      parameters: weather,
      parse: JSON.parse,
      function: ({ city }) => {
        cities.push(city);
        return 'fine';
      },
    },
  };
  const asked = {
    model: CHAT,
    messages,
    tools: [tool],
    tool_choice: { type: 'function', function: { name: 'look_up' } },
    parallel_tool_calls: false,
    max_tokens: 200,
  };
  const results = [];
  for (const stream of [false, true]) {
    const runner = client.chat.completions.runTools({ ...asked, stream });
    results.push(await runner.finalFunctionToolCallResult());
  }
  return { cities, results };
}

async function structured() {
  const format = { type: 'json_schema', json_schema: { name: 'w', schema: weather, strict: true } };
  const asked = { model: CHAT, messages, max_tokens: 90, response_format: format };
  return JSON.parse((await client.chat.completions.create(asked)).choices[0].message.content);
}

async function vectors() {
  const input = 'The quick brown fox';
  const base64 = await client.embeddings.create({ model: EMBEDDING, input });
  const float = await client.embeddings.create({ model: EMBEDDING, input, encoding_format: 'float' });
  return [Array.from(base64.data[0].embedding), float.data[0].embedding];
}

async function responses() {
  const asked = { model: CHAT, input: 'Hello', temperature: 0, max_output_tokens: 16 };
  const whole = await client.responses.create(asked);
  let streamed = '';
  let last = null;
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type === 'response.output_text.delta') streamed += event.delta;
    last = event.type;
  }
  return { text: whole.output_text, streamed, last };
}

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return names;
}

async function files() {
  const file = new File(['{"custom_id": "a"}\n'], 'größe.jsonl');
  const policy = { anchor: 'created_at', seconds: 3600 };
  const made = await client.files.create({ file, purpose: 'batch', expires_after: policy });
  const listed = [];
  for await (const found of client.files.list({ limit: 1 })) listed.push(found.id);
  const content = await (await client.files.content(made.id)).text();
  const again = await client.files.retrieve(made.id);
  const { deleted } = await client.files.delete(made.id);
  return { made, again, listed, content, deleted };
}

async function failures() {
  const wrong = new OpenAI({ apiKey: 'omai-sk-wrong', maxRetries: 0 });
  const tried = {
    BadRequestError: () => client.chat.completions.create({ ...greedy, temperature: 200 }),
    NotFoundError: () => client.models.retrieve('gpt-9'),
    AuthenticationError: () => wrong.models.list(),
  };
  const found = {};
  for (const [kind, attempt] of Object.entries(tried)) {
    try {
      await attempt();
    } catch (error) {
      const { status, code, param, requestID } = error;
      found[kind] = { raised: error instanceof OpenAI[kind], status, code, param, requestID };
    }
  }
  return found;
}

const outcome = {};
for (const part of [chat, tools, structured, vectors, responses, models, files, failures]) {
  outcome[part.name] = await part();
}
process.stdout.write(JSON.stringify(outcome));
