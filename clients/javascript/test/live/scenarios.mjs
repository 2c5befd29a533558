// What users do, against a running server. `node scenarios.mjs NAME` prints its result as JSON.
// Reads OMAI_BASE_URL and OMAI_API_KEY as every client does, and USERNAME and PASSWORD.
import { APIUserAbortError, AuthenticationError, OMAi, RateLimitError } from 'omai';

const HELLO = {
  model: 'omai-gpt-4',
  messages: [{ role: 'user', content: 'Hello, how are you?' }],
  temperature: 0,
  max_tokens: 12,
};
const FOX = { model: 'text-embedding-ada-002', input: 'The quick brown fox' };

const scenarios = {
  async chat() {
    const { data, request_id } = await new OMAi().chat.completions.create(HELLO).withResponse();
    return { content: data.choices[0].message.content, usage: data.usage, request_id };
  },

  async stream() {
    const omai = new OMAi();
    const whole = await omai.chat.completions.create(HELLO);
    const stream = await omai.chat.completions.create({
      ...HELLO,
      stream: true,
      stream_options: { include_usage: true },
    });
    let content = '';
    let usage;
    for await (const chunk of stream) {
      content += chunk.choices[0]?.delta.content ?? '';
      usage = chunk.usage ?? usage;
    }
    return { same: content === whole.choices[0].message.content, usage };
  },

  async abort() {
    const controller = new AbortController();
    const stream = await new OMAi().chat.completions.create(
      { ...HELLO, max_tokens: 1000, stream: true },
      { signal: controller.signal },
    );
    let finished = false;
    for await (const chunk of stream) {
      finished ||= chunk.choices[0].finish_reason !== null;
      controller.abort();
    }
    const late = await new OMAi().models.list({ signal: controller.signal }).then(
      () => 'answered',
      (error) => error instanceof APIUserAbortError,
    );
    return { finished, late };
  },

  async embeddings() {
    const omai = new OMAi();
    const { data, usage } = await omai.embeddings.create(FOX);
    const floats = await omai.embeddings.create({ ...FOX, encoding_format: 'float' });
    const difference = data[0].embedding.map((value, i) => Math.abs(value - floats.data[0].embedding[i]));
    return { dimensions: data[0].embedding.length, difference: Math.max(...difference), usage };
  },

  async models() {
    const ids = [];
    for await (const model of new OMAi().models.list()) ids.push(model.id);
    return ids;
  },

  async session() {
    const seen = [];
    let cookie;
    const recorded = async (url, init) => {
      cookie = init.headers.get('cookie') ?? cookie;
      const response = await fetch(url, init);
      seen.push(`${new URL(url).pathname} ${response.status}`);
      return response;
    };
    const { USERNAME: username, PASSWORD: password } = process.env;
    const omai = new OMAi({ username, password, fetch: recorded });
    await Promise.all([omai.models.list(), omai.models.list()]);
    // The session ends elsewhere, unknown to the client.
    await fetch(`${omai.baseURL}/auth/logout`, { method: 'POST', headers: { cookie } });
    await omai.chat.completions.create(HELLO);
    await omai.logout();
    await omai.logout();
    return seen;
  },

  async wrong_password() {
    const omai = new OMAi({ username: process.env.USERNAME, password: 'not the password' });
    return omai.models.list().then(
      () => 'answered',
      (error) => ({ raised: error instanceof AuthenticationError, code: error.code }),
    );
  },

  async rate_limit() {
    const omai = new OMAi({ maxRetries: 0 });
    for (let answered = 0; ; answered++) {
      try {
        await omai.embeddings.create(FOX);
      } catch (error) {
        if (!(error instanceof RateLimitError)) throw error;
        const { code, type, headers, requestID } = error;
        const retryAfter = headers.get('retry-after');
        return { answered, code, type, retryAfter, requestID };
      }
    }
  },

  async too_large() {
    const requests = [];
    const omai = new OMAi({ fetch: (...request) => (requests.push(request), fetch(...request)) });
    return omai.chat.completions.create({ ...HELLO, n: 100, max_tokens: 1000 }).then(
      () => 'answered',
      (error) => ({ raised: error instanceof RateLimitError, requests: requests.length }),
    );
  },

  async relevance() {
    const omai = new OMAi();
    const { model } = FOX;
    const documents = ['A red apple', 'The quick brown fox', 'Rain tomorrow'];
    const query = documents[1];
    const { results } = await omai.rerank({ model, query, documents, top_n: 2 });
    const { data } = await omai.score({ model, text_1: query, text_2: documents });
    return {
      results: results.length,
      best: results[0].document.text,
      difference: Math.max(...results.map((result) => Math.abs(result.relevance_score - data[result.index].score))),
    };
  },

  async tokens() {
    const omai = new OMAi();
    const { model, messages } = HELLO;
    const prompt = 'Hello, how are you?';
    const { count, tokens, token_strs } = await omai.tokenize({ model, prompt, return_token_strs: true });
    const chat = await omai.tokenize({ model, messages });
    const { usage } = await omai.chat.completions.create(HELLO);
    return {
      counts: [count, tokens.length, token_strs.length],
      same: (await omai.detokenize({ model, tokens })).prompt === prompt,
      chat: [chat.count, usage.prompt_tokens],
    };
  },

  async usage() {
    const omai = new OMAi();
    const { usage } = await omai.chat.completions.create(HELLO);
    const { data } = await omai.usage.list({ bucket_width: '1d', group_by: ['model', 'key'] });
    return { answered: usage, rows: data };
  },
};

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
