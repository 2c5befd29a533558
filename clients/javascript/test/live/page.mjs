// What a web page does. Its own server gives it `settings.json`, and is posted the result.
import { APIError, OMAi } from 'omai';

const HELLO = {
  model: 'omai-gpt-4',
  messages: [{ role: 'user', content: 'Hello, how are you?' }],
  temperature: 0,
  max_tokens: 12,
};

async function withKey({ baseURL, apiKey }) {
  let refused;
  try {
    new OMAi({ baseURL, apiKey });
  } catch (error) {
    refused = error.message;
  }

  const omai = new OMAi({ baseURL, apiKey, dangerouslyAllowBrowser: true });
  const { data, response, request_id } = await omai.chat.completions.create(HELLO).withResponse();
  let streamed = '';
  for await (const chunk of await omai.chat.completions.create({ ...HELLO, stream: true })) {
    streamed += chunk.choices[0]?.delta.content ?? '';
  }

  const error = await omai
    .withOptions({ apiKey: 'wrong' })
    .models.list()
    .then(
      () => undefined,
      (raised) => raised,
    );
  return {
    refused,
    content: data.choices[0].message.content,
    streamed,
    requestID: request_id,
    limit: response.headers.get('x-ratelimit-limit-requests'),
    remaining: response.headers.get('x-ratelimit-remaining-tokens'),
    error: error instanceof APIError && {
      status: error.status,
      code: error.code,
      message: error.message,
      requestID: error.requestID,
    },
  };
}

async function withSession({ baseURL, username, password }) {
  const omai = new OMAi({ baseURL, username, password });
  await Promise.all([omai.models.list(), omai.models.list()]);
  await omai.logout();
  return { cookies: document.cookie };
}

async function run() {
  const settings = await (await fetch('settings.json')).json();
  return settings.apiKey ? withKey(settings) : withSession(settings);
}

const result = await run().catch((error) => ({ failed: `${error}\n${error.stack}` }));
await fetch('result', { method: 'POST', body: JSON.stringify(result) });
