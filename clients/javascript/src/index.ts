export { OMAi, OMAi as default, type ClientOptions } from './client.js';
export {
  APIConnectionError,
  APIConnectionTimeoutError,
  APIError,
  APIPromise,
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  ConflictError,
  InternalServerError,
  NotFoundError,
  OpenAIError as OMAiError,
  PermissionDeniedError,
  RateLimitError,
  UnprocessableEntityError,
  toFile,
  type OpenAI,
} from 'openai';
export type * from './text.js';
export type * from './usage.js';
