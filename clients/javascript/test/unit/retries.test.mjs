import assert from 'node:assert/strict';
import { test } from 'node:test';
import { OMAi, RateLimitError } from 'omai';
import { COMPLETION, HELLO, KEY, failure, stub } from './stub.mjs';

/** Make waits between attempts end at once; return a list of how long they would have been. */
function recordWaits(t) {
  const waits = [];
  const { setTimeout } = globalThis;
  t.mock.method(globalThis, 'setTimeout', (callback, ms, ...rest) => {
    if (!(ms <= 60_000)) return setTimeout(callback, ms, ...rest); // an attempt's deadline
    waits.push(ms);
    return setTimeout(callback, 0, ...rest);
  });
  return waits;
}

/** Fetch from a server that first answers so; without connections, which have timers too. */
async function failing(t, failures, options) {
  const waits = recordWaits(t);
  let requests = 0;
  const fetch = async () => {
    const { status, headers = {}, body } = failures[requests++] ?? { body: COMPLETION };
    return Response.json(body, { status: status ?? 200, headers });
  };
  const omai = new OMAi({ apiKey: KEY, fetch });
  const outcome = await omai.chat.completions.create(HELLO, options).then(
    () => 'success',
    (error) => error,
  );
  return { outcome, waits, requests };
}

for (const [header, value, expected] of [
  ['retry-after', '7', 7000],
  ['retry-after-ms', '130', 130],
]) {
  test(`a 429 is retried after what ${header} says`, async (t) => {
    const { outcome, waits } = await failing(t, [failure(429, { [header]: value })]);
    assert.equal('success', outcome);
    assert.deepEqual([expected], waits);
  });
}

test('retry-after-ms is preferred, being more exact', async (t) => {
  const { waits } = await failing(t, [failure(429, { 'retry-after': '1', 'retry-after-ms': '130' })]);
  assert.deepEqual([130], waits);
});

for (const status of [408, 409, 429, 500, 503]) {
  test(`a ${status} is retried twice, with a wait that doubles, and then raised`, async (t) => {
    const { outcome, waits, requests } = await failing(t, Array(3).fill(failure(status)));
    assert.equal(status, outcome.status);
    assert.equal(3, requests);
    assert.equal(2, waits.length);
    assert.ok(375 <= waits[0] && waits[0] <= 500, `${waits}`);
    assert.ok(750 <= waits[1] && waits[1] <= 1000, `${waits}`);
  });
}

for (const status of [400, 401, 403, 404, 422]) {
  test(`a ${status} is not retried`, async (t) => {
    const { outcome, requests } = await failing(t, [failure(status)]);
    assert.equal(status, outcome.status);
    assert.equal(1, requests);
  });
}

test('x-should-retry decides, whatever the status', async (t) => {
  const refused = await failing(t, [failure(429, { 'x-should-retry': 'false', 'retry-after': '1' })]);
  assert.ok(refused.outcome instanceof RateLimitError);
  assert.equal(1, refused.requests);
  t.mock.restoreAll();
  const retried = await failing(t, [failure(400, { 'x-should-retry': 'true' })]);
  assert.equal('success', retried.outcome);
});

test('maxRetries of a client and of a call bound the attempts', async (t) => {
  const { requests } = await failing(t, Array(9).fill(failure(500)), { maxRetries: 4 });
  assert.equal(5, requests);
  t.mock.restoreAll();
  const none = await failing(t, [failure(500)], { maxRetries: 0 });
  assert.equal(500, none.outcome.status);
});

test('a connection that breaks is retried', async (t) => {
  recordWaits(t);
  const server = await stub((_, count, response) => {
    if (count > 1) return { body: COMPLETION };
    response.destroy();
  });
  await new OMAi({ apiKey: KEY, baseURL: server.baseURL }).chat.completions.create(HELLO);
  assert.equal(2, server.requests.length);
});

test('all attempts of a call carry one idempotency key, other calls another', async (t) => {
  recordWaits(t);
  const server = await stub((_, count) => (count < 3 ? failure(500) : { body: COMPLETION }));
  const omai = new OMAi({ apiKey: KEY, baseURL: server.baseURL });
  await omai.chat.completions.create(HELLO);
  await omai.chat.completions.create(HELLO);
  await omai.chat.completions.create(HELLO, { idempotencyKey: 'my-own' });
  await omai.models.list();
  const keys = server.requests.map(({ headers }) => headers['idempotency-key']);
  assert.equal(6, keys.length);
  assert.ok(keys[0]);
  assert.deepEqual([keys[0], keys[0], keys[0]], keys.slice(0, 3));
  assert.ok(keys[3] && keys[3] !== keys[0]);
  assert.deepEqual(['my-own', undefined], keys.slice(4));
});
