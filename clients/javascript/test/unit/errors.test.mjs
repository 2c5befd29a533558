import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as omaiExports from 'omai';
import OpenAI, * as openaiExports from 'openai';
import { HELLO, KEY, failure, stub } from './stub.mjs';

const { OMAi, OMAiError } = omaiExports;
const BY_STATUS = {
  400: 'BadRequestError',
  401: 'AuthenticationError',
  403: 'PermissionDeniedError',
  404: 'NotFoundError',
  409: 'ConflictError',
  422: 'UnprocessableEntityError',
  429: 'RateLimitError',
  500: 'InternalServerError',
  503: 'InternalServerError',
};

test('every status is raised as the error of its name, under its names of both packages', async () => {
  const server = await stub(({ path }) => failure(Number(path.split('/').at(-1)), { 'x-request-id': 'r1' }));
  const omai = new OMAi({ apiKey: KEY, baseURL: server.baseURL, maxRetries: 0 });
  for (const [status, name] of Object.entries(BY_STATUS)) {
    await assert.rejects(
      async () => omai.models.retrieve(status),
      (error) => {
        for (const type of [omaiExports[name], openaiExports[name], OMAi[name], OpenAI[name]]) {
          assert.ok(error instanceof type, name);
        }
        assert.ok(error instanceof omaiExports.APIError);
        assert.ok(error instanceof OMAiError);
        assert.ok(error instanceof OMAi.OMAiError);
        assert.ok(error instanceof openaiExports.OpenAIError);
        assert.equal(Number(status), error.status);
        assert.equal('some_code', error.code);
        assert.equal('r1', error.requestID);
        return true;
      },
    );
  }
});

test('a server that is not there, a timeout and an abort each have their error', async () => {
  const silent = await stub(() => undefined);
  const omai = new OMAi({ apiKey: KEY, baseURL: silent.baseURL, maxRetries: 0 });
  const { APIConnectionError, APIConnectionTimeoutError, APIUserAbortError } = omaiExports;
  await assert.rejects(
    async () => omai.withOptions({ baseURL: 'http://127.0.0.1:1/v1' }).models.list(),
    APIConnectionError,
  );
  await assert.rejects(async () => omai.models.list({ timeout: 1 }), APIConnectionTimeoutError);
  await assert.rejects(
    async () => omai.chat.completions.create(HELLO, { signal: AbortSignal.abort() }),
    APIUserAbortError,
  );
});
