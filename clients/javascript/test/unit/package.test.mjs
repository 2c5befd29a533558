import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { promisify } from 'node:util';
import Default, * as esm from 'omai';
import { stub } from './stub.mjs';

const require = createRequire(import.meta.url);
const run = promisify(execFile);

// As the API's reference prints it.
const EXAMPLE = `import { OMAi } from 'omai';

const omai = new OMAi({ apiKey: 'your-api-key' });

const response = await omai.chat.completions.create({
  model: 'omai-gpt-4',
  messages: [{ role: 'user', content: 'Hello!' }],
});

console.log(response.choices[0].message.content);
`;

test('import and require give the same names', () => {
  const cjs = require('omai');
  assert.deepEqual(Object.keys(esm).sort(), Object.keys(cjs).sort());
  assert.equal(Default, esm.OMAi);
  assert.equal(cjs.default, cjs.OMAi);
  assert.equal('OMAi', cjs.OMAi.name);
});

test('import is built on upstream’s import, require on its require', () => {
  const cjs = require('omai');
  assert.equal(require('openai').APIError, cjs.APIError);
  assert.ok(new cjs.OMAi({ apiKey: 'key' }) instanceof require('openai').OpenAI);
});

test('what is exported is what is documented', () => {
  assert.deepEqual(
    [
      'APIConnectionError',
      'APIConnectionTimeoutError',
      'APIError',
      'APIPromise',
      'APIUserAbortError',
      'AuthenticationError',
      'BadRequestError',
      'ConflictError',
      'InternalServerError',
      'NotFoundError',
      'OMAi',
      'OMAiError',
      'PermissionDeniedError',
      'RateLimitError',
      'UnprocessableEntityError',
      'default',
      'toFile',
    ],
    Object.keys(esm).sort(),
  );
});

test('the only dependency is upstream', () => {
  const manifest = JSON.parse(readFileSync(require.resolve('omai/package.json'), 'utf8'));
  assert.deepEqual(['openai'], Object.keys(manifest.dependencies));
});

test('the reference’s example prints the answer, exactly as it stands there', async () => {
  const { baseURL } = await stub();
  writeFileSync('example.mjs', EXAMPLE);
  const env = { ...process.env, OMAI_BASE_URL: baseURL };
  const { stdout, stderr } = await run(process.execPath, ['example.mjs'], { env });
  assert.equal('Hello there.\n', stdout);
  assert.equal('', stderr);
});

test('the example works with require', async () => {
  const { baseURL } = await stub();
  const [imported, ...rest] = EXAMPLE.split('\n');
  assert.match(imported, /^import/);
  writeFileSync(
    'example.cjs',
    `const { OMAi } = require('omai');\n(async () => {${rest.join('\n')}})();\n`,
  );
  const env = { ...process.env, OMAI_BASE_URL: baseURL };
  const { stdout } = await run(process.execPath, ['example.cjs'], { env });
  assert.equal('Hello there.\n', stdout);
});
