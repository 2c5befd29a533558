import assert from 'node:assert/strict';
import { test } from 'node:test';
import { OMAi } from 'omai';
import { HELLO, KEY, stub } from './stub.mjs';

async function served(body) {
  const server = await stub(() => ({ headers: { 'x-request-id': 'r1' }, body }));
  return { ...server, omai: new OMAi({ apiKey: KEY, baseURL: server.baseURL }) };
}

test('rerank, score, tokenize and detokenize post their parameters to their paths', async () => {
  const { omai, requests } = await served({ ok: true });
  const calls = [
    ['/v1/rerank', 'rerank', { model: 'm', query: 'q', documents: ['a', 'b'], top_n: 1, return_documents: true }],
    ['/v1/score', 'score', { model: 'm', text_1: 'a', text_2: ['b', 'c'] }],
    ['/tokenize', 'tokenize', { model: 'm', prompt: 'a' }],
    ['/tokenize', 'tokenize', HELLO],
    ['/detokenize', 'detokenize', { model: 'm', tokens: [1, 2] }],
  ];
  for (const [path, method, params] of calls) {
    assert.equal(true, (await omai[method](params)).ok);
    const request = requests.at(-1);
    assert.equal('POST', request.method);
    assert.equal(path, request.path);
    assert.deepEqual(params, request.body);
    assert.equal(`Bearer ${KEY}`, request.headers.authorization);
  }
});

test('tokenize is beside /v1, wherever that is', async () => {
  const { omai, requests, baseURL } = await served({});
  for (const [base, path] of [
    [`${baseURL}/`, '/tokenize'],
    [baseURL.replace('/v1', '/omai/v1'), '/omai/tokenize'],
    [baseURL.replace('/v1', ''), '/tokenize'],
    [baseURL.replace('/v1', '/omai'), '/omai/tokenize'],
  ]) {
    await omai.withOptions({ baseURL: base }).tokenize({ model: 'm', prompt: 'a' });
    assert.equal(path, requests.at(-1).path);
  }
});

test('usage.list asks for a span, grouped, and returns the rows', async () => {
  const { omai, requests } = await served({ object: 'list', data: [{ object: 'usage', requests: 3 }] });
  const usage = await omai.usage.list({
    start_time: 3600,
    end_time: 7200,
    bucket_width: '1h',
    group_by: ['model', 'key'],
  });
  assert.equal(3, usage.data[0].requests);
  await omai.usage.list({ group_by: 'key' });
  await omai.usage.list();
  assert.deepEqual(
    [
      '/v1/usage?start_time=3600&end_time=7200&bucket_width=1h&group_by=model%2Ckey',
      '/v1/usage?group_by=key',
      '/v1/usage',
    ],
    requests.map(({ path }) => path),
  );
});

test('results have their response and request id, upstream’s and OMAi’s own alike', async () => {
  const { omai } = await served({ object: 'list', data: [] });
  for (const call of [
    () => omai.usage.list(),
    () => omai.rerank({ model: 'm', query: 'q', documents: [] }),
    () => omai.chat.completions.create(HELLO),
  ]) {
    const { data, response, request_id } = await call().withResponse();
    assert.equal('list', data.object);
    assert.equal(200, response.status);
    assert.equal('r1', request_id);
    assert.equal('r1', (await call())._request_id);
    assert.equal(200, (await call().asResponse()).status);
  }
});

test('options of a call are passed on', async () => {
  const { omai, requests } = await served({});
  await omai.score({ model: 'm', text_1: 'a', text_2: 'b' }, { headers: { 'X-Own': 'own' } });
  assert.equal('own', requests[0].headers['x-own']);
});

test('withOptions keeps what it does not change, subclasses included', async () => {
  class Own extends OMAi {}
  const omai = new Own({ apiKey: KEY, maxRetries: 5, defaultHeaders: { 'X-Own': 'own' }, defaultQuery: { a: '1' } });
  const { baseURL, requests } = await served({});
  const changed = omai.withOptions({ baseURL, timeout: 1234 });
  assert.ok(changed instanceof Own);
  assert.deepEqual([5, 1234], [changed.maxRetries, changed.timeout]);
  await changed.models.list();
  assert.equal('own', requests[0].headers['x-own']);
  assert.equal('/v1/models?a=1', requests[0].path);
  assert.equal(`Bearer ${KEY}`, requests[0].headers.authorization);
});
