import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { OMAi } from 'omai';
import { COMPLETION, HELLO, KEY, failure, stub } from './stub.mjs';

const PASSWORD = 'correct horse battery';
const COOKIE = 's3cr3tc00k1e';
const SECRETS = new RegExp([KEY, KEY.split('_')[1], PASSWORD, COOKIE].join('|'));

const clients = {
  'a key': { apiKey: KEY },
  'a function for keys': { apiKey: async () => KEY },
  'a password': { username: 'ada', password: PASSWORD },
};

for (const [name, credentials] of Object.entries(clients)) {
  test(`no way of showing a client with ${name} shows its secrets`, async () => {
    const server = await stub(() => ({
      headers: { 'set-cookie': `omai_session=${COOKIE}; Path=/` },
      body: COMPLETION,
    }));
    const given = new OMAi({ ...credentials, baseURL: server.baseURL });
    await given.chat.completions.create(HELLO);
    for (const omai of [given, given.withOptions({ timeout: 5000 })]) {
      await omai.chat.completions.create(HELLO);
      const shown = [
        inspect(omai),
        inspect(omai, { depth: 10, customInspect: false }),
        inspect({ nested: [omai.chat, omai.usage] }, { depth: 10 }),
        JSON.stringify({ omai }),
        inspect({ ...omai }, { depth: 10, customInspect: false }),
        String(omai),
      ];
      for (const text of shown) assert.doesNotMatch(text, SECRETS);
      assert.match(inspect(omai), /^OMAi \{.*"baseURL":/);
      assert.equal(server.baseURL, JSON.parse(JSON.stringify(omai)).baseURL);
    }
  });

  test(`no log of a client with ${name} has its secrets, at any level`, async () => {
    let status = 200;
    const server = await stub(({ path }) =>
      status === 200 || path.endsWith('login') ?
        { headers: { 'set-cookie': `omai_session=${COOKIE}; Path=/` }, body: COMPLETION }
      : failure(status, { 'retry-after-ms': '1' }),
    );
    const logged = [];
    const log = (...values) => logged.push(inspect(values, { depth: 10 }));
    const logger = { error: log, warn: log, info: log, debug: log };
    const omai = new OMAi({ ...credentials, baseURL: server.baseURL, logger, logLevel: 'debug' });
    await omai.chat.completions.create(HELLO);
    for (status of [500, 401]) {
      const error = await omai.models.list().then(assert.fail, (raised) => raised);
      assert.doesNotMatch(inspect(error, { depth: 10 }), SECRETS);
    }
    assert.ok(logged.length > 4);
    for (const text of logged) assert.doesNotMatch(text, SECRETS);
  });
}
