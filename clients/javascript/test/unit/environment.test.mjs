import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { OMAi } from 'omai';
import { HELLO, KEY, setEnv, stub } from './stub.mjs';

const upstream = dirname(createRequire(import.meta.url).resolve('openai'));

/** Every variable that upstream's code names, whatever its version. */
function upstreamVariables() {
  const names = new Set();
  for (const file of readdirSync(upstream, { recursive: true })) {
    if (!/\.m?js$/.test(file)) continue;
    for (const [name] of readFileSync(join(upstream, file), 'utf8').matchAll(/\bOPENAI_[A-Z_]+\b/g)) {
      names.add(name);
    }
  }
  return [...names];
}

const special = {
  OPENAI_BASE_URL: 'http://leak.invalid/v1',
  OPENAI_CUSTOM_HEADERS: 'X-Leak: leak\nAuthorization: Bearer leak',
  OPENAI_LOG: 'debug',
};

test("none of upstream's variables reaches a request, a log or the client", async (t) => {
  const names = upstreamVariables();
  assert.ok(names.includes('OPENAI_API_KEY') && names.includes('OPENAI_LOG'));
  setEnv(t, {
    ...Object.fromEntries(names.map((name) => [name, special[name] ?? 'leak'])),
    ...special,
  });
  const logged = [];
  const log = (...values) => logged.push(values);
  const logger = { error: log, warn: log, info: log, debug: log };
  const server = await stub();
  const given = { baseURL: server.baseURL, logger, defaultHeaders: { 'X-Own': 'own' } };
  const clients = [
    new OMAi({ ...given, apiKey: KEY }),
    new OMAi({ ...given, username: 'ada', password: 'correct horse' }),
  ];
  for (const client of clients) {
    for (const omai of [client, client.withOptions({ timeout: 5000 })]) {
      await omai.chat.completions.create(HELLO);
      await omai.models.list();
      await omai.usage.list();
      assert.equal(null, omai.organization);
      assert.equal(null, omai.project);
      assert.equal(null, omai.webhookSecret);
      assert.equal('warn', omai.logLevel);
    }
  }
  assert.deepEqual([], logged);
  for (const { headers } of server.requests) {
    assert.doesNotMatch(JSON.stringify(headers), /leak/);
    assert.equal('own', headers['x-own']);
    assert.ok(!Object.keys(headers).some((name) => name.startsWith('openai-')));
  }
});

test('an OPENAI_API_KEY is no substitute for a key', (t) => {
  setEnv(t, { OPENAI_API_KEY: 'leak', OPENAI_ADMIN_KEY: 'leak' });
  assert.throws(() => new OMAi(), /OMAI_API_KEY/);
});
