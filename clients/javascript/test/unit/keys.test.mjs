import assert from 'node:assert/strict';
import { test } from 'node:test';
import { OMAi, OMAiError } from 'omai';
import { KEY, setEnv, stub } from './stub.mjs';

const SECRET = KEY.split('_')[1];

function refusal(apiKey) {
  try {
    new OMAi({ apiKey });
  } catch (error) {
    return error;
  }
  assert.fail('the key was accepted');
}

test('a well-formed OMAi key is accepted', () => {
  assert.equal(KEY, new OMAi({ apiKey: KEY }).apiKey);
});

test('any one wrong character of an OMAi key is found out, and the secret is not shown', () => {
  for (let index = 'omai-sk-'.length; index < KEY.length; index++) {
    const wrong = KEY[index] === 'x' ? 'y' : 'x';
    const error = refusal(KEY.slice(0, index) + wrong + KEY.slice(index + 1));
    assert.ok(error instanceof OMAiError);
    assert.match(error.message, /malformed/);
    assert.doesNotMatch(error.stack, /abcdefgh|ABCDEFGH/);
  }
});

test('an OMAi key that was not copied whole is refused', () => {
  const wrong = [KEY.slice(0, -1), `${KEY}\n${KEY}`, 'omai-sk-', `${KEY}${KEY}`];
  for (const key of wrong) {
    assert.ok(!refusal(key).message.includes(SECRET));
  }
});

test('white space around a key is no part of it; other keys that fit no header are refused', async () => {
  const server = await stub();
  await new OMAi({ apiKey: ` ${KEY}\n`, baseURL: server.baseURL }).models.list();
  assert.equal(`Bearer ${KEY}`, server.requests.at(-1).headers.authorization);
  for (const key of ['  ', 'other-secret\nvalue', 'k\u00e9y']) {
    const { message } = refusal(key);
    assert.doesNotMatch(message, /secret/);
  }
});

test('a base URL that is none, or that holds a password, is refused', () => {
  for (const baseURL of ['nonsense', 'http://u:PASSW@host/v1']) {
    assert.throws(
      () => new OMAi({ apiKey: KEY, baseURL }),
      (error) => error instanceof OMAiError && !error.message.includes('PASSW'),
    );
  }
});

test('keys of other forms are passed on', async () => {
  const server = await stub();
  for (const apiKey of ['your-api-key', 'sk-proj-123', `x${KEY}x`]) {
    await new OMAi({ apiKey, baseURL: server.baseURL }).models.list();
    assert.equal(`Bearer ${apiKey}`, server.requests.at(-1).headers.authorization);
  }
});

test('a function that returns keys is asked for each request, and its keys are checked', async () => {
  const server = await stub();
  const keys = ['first', 'second', KEY.slice(0, -1)];
  const omai = new OMAi({ apiKey: async () => keys.shift(), baseURL: server.baseURL });
  await omai.models.list();
  await omai.models.list();
  assert.deepEqual(
    ['Bearer first', 'Bearer second'],
    server.requests.map((request) => request.headers.authorization),
  );
  await assert.rejects(async () => omai.models.list(), /malformed/);
  assert.equal(2, server.requests.length);
});

test('the key and the base URL are read from OMAI_API_KEY and OMAI_BASE_URL', (t) => {
  setEnv(t, { OMAI_API_KEY: ` ${KEY}\n`, OMAI_BASE_URL: 'http://127.0.0.1:1/v1' });
  const omai = new OMAi();
  assert.equal(KEY, omai.apiKey);
  assert.equal('http://127.0.0.1:1/v1', omai.baseURL);
  const other = new OMAi({ apiKey: 'other', baseURL: 'http://127.0.0.1:2/v1' });
  assert.equal('other', other.apiKey);
  assert.equal('http://127.0.0.1:2/v1', other.baseURL);
});

test('the base URL is https://api.omai.ai/v1 where nothing else is said', () => {
  assert.equal('https://api.omai.ai/v1', new OMAi({ apiKey: KEY }).baseURL);
});

test('missing and ambiguous credentials are refused', () => {
  const refused = [
    [{}, /Missing credentials.*OMAI_API_KEY/],
    [{ apiKey: '' }, /Missing credentials/],
    [{ apiKey: null }, /Missing credentials/],
    [{ username: 'ada' }, /both/],
    [{ password: 'secret' }, /both/],
    [{ username: '', password: 'secret' }, /both/],
    [{ apiKey: 'key', username: 'ada', password: 'secret' }, /not both/],
  ];
  for (const [options, message] of refused) {
    assert.throws(
      () => new OMAi(options),
      (error) => error instanceof OMAiError && message.test(error.message),
    );
  }
});
