import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  APIConnectionError,
  APIUserAbortError,
  AuthenticationError,
  InternalServerError,
  OMAi,
  OMAiError,
} from 'omai';
import { COMPLETION, HELLO, KEY, failure, stub } from './stub.mjs';

const ADA = { username: 'ada', password: 'correct horse' };

/** A server with sessions: `live` holds the values of cookies that are good. */
async function sessionServer({ login = () => undefined, call = () => undefined } = {}) {
  const live = new Set();
  const cookie = (value, age) => ({
    'set-cookie': `omai_session=${value}; Path=/; Max-Age=${age}; HttpOnly; SameSite=Lax`,
  });
  let count = 0;
  const server = await stub(async (request) => {
    const value = request.headers.cookie?.match(/omai_session=(\w+)/)?.[1];
    if (request.path === '/v1/auth/login') {
      const answer = await login(request);
      if (answer) return answer;
      live.add(`s${++count}`);
      return { headers: cookie(`s${count}`, 3600) };
    }
    if (!live.has(value)) return failure(401);
    if (request.path === '/v1/auth/logout') {
      live.delete(value);
      return { headers: cookie('', 0) };
    }
    return (await call(request)) ?? { body: COMPLETION };
  });
  const paths = () => server.requests.map(({ path }) => path.replace('/v1/', ''));
  return { ...server, live, paths, omai: new OMAi({ ...ADA, baseURL: server.baseURL, maxRetries: 0 }) };
}

const chat = (omai, options) => omai.chat.completions.create(HELLO, options);

test('the first call logs in with username and password, and all calls send the cookie', async () => {
  const { omai, requests, paths } = await sessionServer();
  assert.deepEqual([], paths());
  await chat(omai);
  await omai.models.list();
  assert.deepEqual(['auth/login', 'chat/completions', 'models'], paths());
  assert.deepEqual(ADA, requests[0].body);
  assert.equal('omai_session=s1', requests[1].headers.cookie);
  assert.equal('omai_session=s1', requests[2].headers.cookie);
  for (const { headers } of requests) assert.equal(undefined, headers.authorization);
  assert.equal(undefined, requests[0].headers['idempotency-key']);
});

test('calls that begin together share one login', async () => {
  const { omai, paths } = await sessionServer();
  await Promise.all(Array.from({ length: 8 }, () => chat(omai)));
  assert.equal(1, paths().filter((path) => path === 'auth/login').length);
  assert.equal(9, paths().length);
});

test('calls that find the session ended together share one new login', async () => {
  const { omai, live, paths } = await sessionServer();
  await chat(omai);
  live.clear();
  await Promise.all(Array.from({ length: 8 }, () => chat(omai)));
  assert.equal(2, paths().filter((path) => path === 'auth/login').length);
});

test('a 401 after a new login is raised', async () => {
  const { omai, paths } = await sessionServer({ call: () => failure(401) });
  await assert.rejects(chat(omai), AuthenticationError);
  assert.deepEqual(['auth/login', 'chat/completions', 'auth/login', 'chat/completions'], paths());
});

test('a retry after a new login carries the same idempotency key', async () => {
  const { omai, live, requests } = await sessionServer();
  await chat(omai);
  live.clear();
  await chat(omai);
  const keys = requests.slice(-3).map(({ headers }) => headers['idempotency-key']);
  assert.deepEqual([keys[0], undefined, keys[0]], keys);
});

test('a refused login is raised as the error of its status, and the next call tries again', async () => {
  let status = 401;
  const { omai, paths } = await sessionServer({ login: () => status && failure(status) });
  await assert.rejects(chat(omai), AuthenticationError);
  status = 503;
  await assert.rejects(chat(omai), InternalServerError);
  assert.deepEqual(['auth/login', 'auth/login'], paths());
  status = undefined;
  await chat(omai);
});

test('a login that fails for the moment is retried as any call is', async () => {
  let failures = 2;
  const { omai, paths } = await sessionServer({
    login: () => (failures-- > 0 ? failure(503, { 'retry-after-ms': '1' }) : undefined),
  });
  await chat(omai.withOptions({ maxRetries: 2 }));
  assert.deepEqual(['auth/login', 'auth/login', 'auth/login', 'chat/completions'], paths());
});

test('a server that is not there is a connection error', async () => {
  const omai = new OMAi({ ...ADA, baseURL: 'http://127.0.0.1:1/v1', maxRetries: 0 });
  await assert.rejects(chat(omai), APIConnectionError);
});

test('aborting the call that began the login leaves the others their login', async () => {
  const arrived = Promise.withResolvers?.() ?? resolvers();
  const released = Promise.withResolvers?.() ?? resolvers();
  const { omai, paths } = await sessionServer({
    login: async () => {
      arrived.resolve();
      await released.promise;
    },
  });
  const aborted = new AbortController();
  const first = assert.rejects(chat(omai, { signal: aborted.signal }), APIUserAbortError);
  await arrived.promise;
  const second = chat(omai);
  aborted.abort();
  await first;
  released.resolve();
  await second;
  assert.deepEqual(['auth/login', 'chat/completions'], paths());
});

function resolvers() {
  const made = {};
  made.promise = new Promise((resolve) => (made.resolve = resolve));
  return made;
}

test('logout ends the session; the next call begins another', async () => {
  const { omai, live, paths, requests } = await sessionServer();
  await chat(omai);
  assert.equal(undefined, await omai.logout());
  assert.equal(0, live.size);
  await chat(omai);
  assert.deepEqual(
    ['auth/login', 'chat/completions', 'auth/logout', 'auth/login', 'chat/completions'],
    paths(),
  );
  assert.equal(undefined, requests[3].headers.cookie);
});

test('logout of a session that is over, or never began, is no error and begins none', async () => {
  const { omai, live, paths } = await sessionServer();
  await omai.logout();
  assert.deepEqual(['auth/logout'], paths());
  await chat(omai);
  live.clear();
  await omai.logout();
  assert.deepEqual(['auth/logout', 'auth/login', 'chat/completions', 'auth/logout'], paths());
});

test('a client with a key cannot log out', async () => {
  await assert.rejects(new OMAi({ apiKey: KEY }).logout(), OMAiError);
});

test('cookies that the server adds are sent too, and its renewals replace the old', async () => {
  const { omai, requests } = await sessionServer({
    login: () => ({ headers: { 'set-cookie': ['omai_session=gone; Path=/', 'route=b7; Path=/; HttpOnly'] } }),
  });
  await assert.rejects(chat(omai), AuthenticationError);
  assert.equal('omai_session=gone; route=b7', requests[1].headers.cookie);
});

test('withOptions shares the session, unless its server, user or key is another', async () => {
  const { omai, paths, requests, baseURL } = await sessionServer();
  await chat(omai);
  await chat(omai.withOptions({ timeout: 5000 }).withOptions({ maxRetries: 1 }));
  assert.deepEqual(['auth/login', 'chat/completions', 'chat/completions'], paths());
  await chat(omai.withOptions({ username: 'eve', password: 'battery staple' }));
  assert.deepEqual({ username: 'eve', password: 'battery staple' }, requests[3].body);

  const other = await sessionServer();
  await chat(omai.withOptions({ baseURL: other.baseURL }));
  assert.deepEqual(['auth/login', 'chat/completions'], other.paths());
  assert.equal(undefined, other.requests[0].headers.cookie);

  const keyed = omai.withOptions({ apiKey: KEY });
  await assert.rejects(chat(keyed), AuthenticationError);
  assert.equal(`Bearer ${KEY}`, requests.at(-1).headers.authorization);
  assert.equal(undefined, requests.at(-1).headers.cookie);
  const back = keyed.withOptions(ADA);
  assert.equal(baseURL, back.baseURL);
  await chat(back);
  assert.equal(undefined, requests.at(-1).headers.authorization);
});

test('neither cookie nor login goes to another server', async () => {
  const { omai } = await sessionServer();
  await chat(omai);
  const elsewhere = await stub();
  await omai.get(elsewhere.baseURL);
  const [{ headers }] = elsewhere.requests;
  assert.equal(undefined, headers.cookie);
  assert.equal(undefined, headers.authorization);
});

test('a login follows no redirect, which would take the password along', async () => {
  const elsewhere = await stub();
  const { baseURL } = await stub(() => ({
    status: 307,
    headers: { location: `${elsewhere.baseURL}/auth/login` },
    body: {},
  }));
  await assert.rejects(chat(new OMAi({ ...ADA, baseURL, maxRetries: 0 })));
  assert.equal(0, elsewhere.requests.length);
});

test('options that are undefined change nothing', async () => {
  const { omai, paths } = await sessionServer();
  const same = omai.withOptions({ apiKey: undefined, username: undefined, timeout: 1000 });
  await chat(same);
  assert.deepEqual(['auth/login', 'chat/completions'], paths());
});

test('a fetch of the user’s own is what logs in and calls', async () => {
  const { baseURL } = await sessionServer();
  const urls = [];
  const own = (url, init) => {
    urls.push(String(url).replace(baseURL, ''));
    return fetch(url, init);
  };
  await chat(new OMAi({ ...ADA, baseURL: `${baseURL}/`, fetch: own }));
  assert.deepEqual(['/auth/login', '/chat/completions'], urls);
});
