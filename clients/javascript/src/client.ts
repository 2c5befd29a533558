import {
  OpenAI,
  OpenAIError as OMAiError,
  AuthenticationError,
  type APIPromise,
  type ClientOptions as OpenAIOptions,
} from 'openai';
import { checkedKey } from './keys.js';
import { NO_KEY, Session } from './session.js';
import {
  type DetokenizeParams,
  type DetokenizeResponse,
  type RerankParams,
  type RerankResponse,
  type ScoreParams,
  type ScoreResponse,
  type TokenizeParams,
  type TokenizeResponse,
} from './text.js';
import { Usage } from './usage.js';

const DEFAULT_BASE_URL = 'https://api.omai.ai/v1';
const inspected = Symbol.for('nodejs.util.inspect.custom');
const shared = Symbol('session');

/** Either an API key, or a username and a password. */
export interface ClientOptions extends Pick<
  OpenAIOptions,
  | 'dangerouslyAllowBrowser'
  | 'defaultHeaders'
  | 'defaultQuery'
  | 'fetch'
  | 'fetchOptions'
  | 'logger'
  | 'logLevel'
  | 'maxRetries'
  | 'timeout'
> {
  /** Default: the environment's OMAI_API_KEY. A function is asked before each request. */
  apiKey?: string | (() => Promise<string>) | null | undefined;
  /** Default: the environment's OMAI_BASE_URL, or https://api.omai.ai/v1. */
  baseURL?: string | null | undefined;
  username?: string | undefined;
  password?: string | undefined;
}

interface InternalOptions extends ClientOptions {
  [shared]?: Session | undefined;
}

/** A client of the OMAi API: the OpenAI client, with what is OMAi's own. */
export class OMAi extends OpenAI {
  static readonly OMAiError = OMAiError;

  readonly usage: Usage;
  readonly #given: InternalOptions;
  readonly #session: Session | undefined;

  /** Throws an OMAiError where credentials are missing, ambiguous or malformed. */
  constructor(options: ClientOptions = {}) {
    const { apiKey, username, password, ...others } = options as InternalOptions;
    const { [shared]: inherited, ...rest } = others;
    const baseURL = checkedURL(rest.baseURL || readEnv('OMAI_BASE_URL') || DEFAULT_BASE_URL);
    const session = sessionOf({ apiKey, username, password, baseURL, fetch: rest.fetch }, inherited);
    const key = session ? undefined : keyOf(apiKey);
    super({
      ...rest,
      baseURL,
      apiKey: key ?? NO_KEY,
      fetch: session ? session.fetch : rest.fetch,
      dangerouslyAllowBrowser: session !== undefined || rest.dangerouslyAllowBrowser,
      // Where these are left out, upstream reads OPENAI_* variables: another service's secrets.
      ...{ adminAPIKey: null, organization: null, project: null, webhookSecret: null },
      logLevel: rest.logLevel ?? 'warn',
    });
    // Upstream has added OPENAI_CUSTOM_HEADERS to them.
    this._options.defaultHeaders = rest.defaultHeaders;
    this.idempotencyHeader = 'Idempotency-Key';
    this.usage = new Usage(this);
    this.#given = { ...options, apiKey: key, [shared]: session };
    this.#session = session;
    for (const secret of ['apiKey', '_options']) {
      Object.defineProperty(this, secret, { enumerable: false });
    }
  }

  /** Return a client with some options changed. It shares the session, unless that is changed. */
  override withOptions(options: Partial<ClientOptions>): this {
    const { apiKey, username, password, ...given } = this.#given;
    const { apiKey: newKey, username: newUsername, password: newPassword, ...others } = options;
    const changed = newKey ?? newUsername ?? newPassword;
    return new (this.constructor as new (options: ClientOptions) => this)({
      ...given,
      ...(changed == null
        ? { apiKey, username, password }
        : { apiKey: newKey, username: newUsername, password: newPassword }),
      baseURL: this.baseURL,
      fetchOptions: this.fetchOptions,
      logger: this.logger,
      logLevel: this.logLevel,
      maxRetries: this.maxRetries,
      timeout: this.timeout,
      ...others,
    });
  }

  /** Order documents by their relevance to a query. */
  rerank(params: RerankParams, options?: OpenAI.RequestOptions): APIPromise<RerankResponse> {
    return this.post('/rerank', { body: params, ...options });
  }

  /** Score how well texts match. */
  score(params: ScoreParams, options?: OpenAI.RequestOptions): APIPromise<ScoreResponse> {
    return this.post('/score', { body: params, ...options });
  }

  /** Count and list a text's, or messages', tokens. */
  tokenize(params: TokenizeParams, options?: OpenAI.RequestOptions): APIPromise<TokenizeResponse> {
    return this.post(this.#rootURL('/tokenize'), { body: params, ...options });
  }

  /** Return the text of tokens. */
  detokenize(params: DetokenizeParams, options?: OpenAI.RequestOptions): APIPromise<DetokenizeResponse> {
    return this.post(this.#rootURL('/detokenize'), { body: params, ...options });
  }

  /** End the session. A later call begins another. */
  async logout(options?: OpenAI.RequestOptions): Promise<void> {
    if (!this.#session) throw new OMAiError('Only a client with a username and password can log out.');
    try {
      await this.post('/auth/logout', options);
    } catch (error) {
      if (!(error instanceof AuthenticationError)) throw error; // else it was over already
    }
  }

  /** What may be shown of a client: none of its credentials. */
  toJSON(): { baseURL: string; maxRetries: number; timeout: number } {
    const { baseURL, maxRetries, timeout } = this;
    return { baseURL, maxRetries, timeout };
  }

  [inspected](): string {
    return `${this.constructor.name} ${JSON.stringify(this)}`;
  }

  /** Return the URL of a path that is not below /v1. */
  #rootURL(path: string): string {
    return this.baseURL.replace(/\/(v1\/?)?$/, '') + path;
  }
}

function sessionOf(
  { apiKey, username, password, baseURL, fetch }: InternalOptions & { baseURL: string },
  inherited: Session | undefined,
): Session | undefined {
  if (username == null && password == null) return undefined;
  if (!username || !password) throw new OMAiError('Pass both `username` and `password`.');
  if (apiKey != null) throw new OMAiError('Pass an `apiKey`, or a `username` and `password`, not both.');
  const credentials = { baseURL, username, password, fetch };
  return inherited?.isFor(credentials) ? inherited : new Session(credentials);
}

function checkedURL(text: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new OMAiError('`baseURL` is no URL: it begins with https:// or http://.');
  }
  // It would be in every error's text.
  if (url.username || url.password) {
    throw new OMAiError('`baseURL` holds a password: pass `username` and `password` instead.');
  }
  return text;
}

function keyOf(given: ClientOptions['apiKey']): string | (() => Promise<string>) {
  const key = given ?? readEnv('OMAI_API_KEY');
  if (typeof key === 'function') return async () => checkedKey(await key());
  if (key) return checkedKey(key);
  throw new OMAiError(
    'Missing credentials. Pass an `apiKey`, or a `username` and `password`, or set OMAI_API_KEY.',
  );
}

function readEnv(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.[name]?.trim();
}
