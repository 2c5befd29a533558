import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { APIError, OMAi } from 'omai';
import { HELLO, KEY, stub } from './stub.mjs';

const chunk = (content) => ({
  id: 'chatcmpl-1',
  object: 'chat.completion.chunk',
  choices: [{ index: 0, delta: { content }, finish_reason: null }],
});

/** A server whose streams `write` writes. */
async function streaming(write) {
  const server = await stub((_request, _count, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    write(response);
  });
  return new OMAi({ apiKey: KEY, baseURL: server.baseURL });
}

const event = (value) => `data: ${JSON.stringify(value)}\n\n`;

test('a stream is iterated to [DONE], comments left out', async () => {
  const omai = await streaming((response) => {
    response.end(`: wait\n\n${event(chunk('Hel'))}${event(chunk('lo'))}data: [DONE]\n\n`);
  });
  const stream = await omai.chat.completions.create({ ...HELLO, stream: true });
  let text = '';
  for await (const part of stream) text += part.choices[0].delta.content;
  assert.equal('Hello', text);
});

test('an error within a stream is raised', async () => {
  const error = { message: 'Broken.', type: 'server_error', param: null, code: null };
  const omai = await streaming((response) => {
    response.end(`${event(chunk('Hel'))}${event({ error })}`);
  });
  const stream = await omai.chat.completions.create({ ...HELLO, stream: true });
  await assert.rejects(async () => {
    for await (const part of stream) assert.equal('Hel', part.choices[0].delta.content);
  }, (raised) => raised instanceof APIError && /Broken/.test(raised.message));
});

for (const how of ['signal', 'break']) {
  test(`a stream that is left by ${how} is closed at the server`, async () => {
    let closed;
    const omai = await streaming((response) => {
      closed = once(response, 'close');
      response.write(event(chunk('endless')));
    });
    const controller = new AbortController();
    const stream = await omai.chat.completions.create(
      { ...HELLO, stream: true },
      { signal: controller.signal },
    );
    let parts = 0;
    for await (const _ of stream) {
      parts++;
      if (how === 'break') break;
      controller.abort();
    }
    assert.equal(1, parts);
    await closed;
  });
}
