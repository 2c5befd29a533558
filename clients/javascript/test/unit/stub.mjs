// A server on loopback that answers as a test says, and remembers what it was asked.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after } from 'node:test';

/** Well-formed, and nobody's. */
export const KEY =
  'omai-sk-0123456789AB_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ_6FlLSS';

export const COMPLETION = {
  id: 'chatcmpl-1',
  object: 'chat.completion',
  created: 1,
  model: 'omai-gpt-4',
  choices: [
    {
      index: 0,
      message: { role: 'assistant', content: 'Hello there.' },
      finish_reason: 'stop',
      logprobs: null,
    },
  ],
  usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 },
};

export const HELLO = { model: 'omai-gpt-4', messages: [{ role: 'user', content: 'Hello!' }] };

/**
 * Start a server; `answer` gets each request, `{method, path, headers, body}`, and returns
 * `{status, headers, body}`, or undefined to leave it unanswered.
 */
export async function stub(answer = () => ({ body: COMPLETION })) {
  const requests = [];
  const server = createServer(async (message, response) => {
    const chunks = [];
    for await (const chunk of message) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    const request = {
      method: message.method,
      path: message.url,
      headers: message.headers,
      body: text && JSON.parse(text),
    };
    requests.push(request);
    const answered = await answer(request, requests.length, response);
    if (!answered) return;
    const { status = 200, headers = {}, body = {} } = answered;
    response.writeHead(status, { 'content-type': 'application/json', ...headers });
    response.end(JSON.stringify(body));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { baseURL: `http://127.0.0.1:${server.address().port}/v1`, requests };
}

/** The body of an error as the API has them. */
export function failure(status, headers = {}) {
  const error = { message: 'No.', type: 'server_error', param: null, code: 'some_code' };
  return { status, headers, body: { error } };
}

/** Set variables of the environment until the test ends. */
export function setEnv(t, variables) {
  const before = { ...process.env };
  Object.assign(process.env, variables);
  t.after(() => {
    for (const name of Object.keys(variables)) delete process.env[name];
    Object.assign(process.env, before);
  });
}
