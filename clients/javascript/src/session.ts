import { type ClientOptions } from 'openai';

type Fetch = NonNullable<ClientOptions['fetch']>;
type Refusal = () => Response;

const LOGIN_TIMEOUT_MS = 60_000;

/** What a session was opened with. */
export interface Credentials {
  baseURL: string;
  username: string;
  password: string;
  fetch: Fetch | undefined;
}

/** What the client hands to upstream as its key; it never leaves this process. */
export const NO_KEY = 'logged-in-by-password';

/**
 * Logs in before the first request and after a session has ended, and sends the session's cookie.
 *
 * In a browser, which shows cookies to no script, requests are made with `credentials: 'include'`.
 */
export class Session {
  readonly #credentials: Credentials;
  readonly #origin: string;
  readonly #cookies = new Map<string, string>();
  /** Undefined where nobody is logged in. Resolves to what to answer where the login was refused. */
  #login: Promise<Refusal | undefined> | undefined;

  constructor(credentials: Credentials) {
    this.#credentials = credentials;
    this.#origin = new URL(credentials.baseURL).origin;
  }

  /** Whether this session may be used for these credentials. */
  isFor(other: Credentials): boolean {
    const own = this.#credentials;
    return (
      own.baseURL === other.baseURL &&
      own.username === other.username &&
      own.password === other.password &&
      own.fetch === other.fetch
    );
  }

  /**
   * Fetch within the session. A refused login is returned as the answer, so that it is retried or
   * raised by the rules of every other answer.
   */
  readonly fetch: Fetch = async (input, init) => {
    const url = String(input instanceof Request ? input.url : input);
    if (new URL(url).origin !== this.#origin) return this.#plainFetch(url, withoutKey(init));
    if (url === this.#url('/auth/logout')) return this.#logOut(url, init);

    const login = this.#logIn(init);
    const refusal = await unlessAborted(login, init?.signal);
    if (refusal) return refusal();
    const response = await this.#fetchWithCookies(url, init);
    if (response.status !== 401 || init?.body instanceof ReadableStream) return response;

    await response.body?.cancel();
    this.#forget(login);
    const secondRefusal = await unlessAborted(this.#logIn(init), init?.signal);
    return secondRefusal ? secondRefusal() : this.#fetchWithCookies(url, init);
  };

  /** Return the login that is under way or done, or begin one: concurrent calls share it. */
  #logIn(init: RequestInit | undefined): Promise<Refusal | undefined> {
    if (this.#login) return this.#login;
    const login = this.#postLogin(init);
    this.#login = login;
    const forget = () => this.#forget(login);
    login.then((refusal) => refusal && forget(), forget);
    return login;
  }

  /** Make the next call log in, unless another already has since this login. */
  #forget(login: Promise<Refusal | undefined>): void {
    if (this.#login === login) this.#login = undefined;
  }

  async #postLogin(init: RequestInit | undefined): Promise<Refusal | undefined> {
    const headers = new Headers(init?.headers);
    headers.set('accept', 'application/json');
    headers.set('content-type', 'application/json');
    headers.delete('idempotency-key');
    const { username, password } = this.#credentials;
    const response = await this.#fetchWithCookies(this.#url('/auth/login'), {
      ...init,
      method: 'POST',
      headers,
      body: JSON.stringify({ username, password }),
      redirect: 'error', // which would take the password along
      // Of its own: other calls may wait for this login when the first one is aborted.
      signal: AbortSignal.timeout(LOGIN_TIMEOUT_MS),
    });
    const body = await response.text();
    if (response.ok) return undefined;
    const { status, statusText } = response;
    return () => new Response(body, { status, statusText, headers: response.headers });
  }

  async #logOut(url: string, init: RequestInit | undefined): Promise<Response> {
    const response = await this.#fetchWithCookies(url, init);
    if (response.ok || response.status === 401) {
      this.#cookies.clear();
      this.#login = undefined;
    }
    return response;
  }

  async #fetchWithCookies(url: string, init: RequestInit | undefined): Promise<Response> {
    const request = withoutKey(init);
    if (this.#cookies.size) {
      const pairs = [...this.#cookies].map(([name, value]) => `${name}=${value}`);
      const given = request.headers.get('cookie');
      if (given) pairs.unshift(given);
      request.headers.set('cookie', pairs.join('; '));
    }
    // Not all runtimes that are no browsers accept the option.
    if ('credentials' in Request.prototype) request.credentials = 'include';
    const response = await this.#plainFetch(url, request);
    if (!response.redirected || new URL(response.url).origin === this.#origin) {
      for (const cookie of response.headers.getSetCookie()) this.#keep(cookie);
    }
    return response;
  }

  /** Keep or drop a cookie, as its Set-Cookie header says. All of them are for this server. */
  #keep(cookie: string): void {
    const [pair = '', ...attributes] = cookie.split(';');
    const equals = pair.indexOf('=');
    if (equals < 0) return;
    const name = pair.slice(0, equals).trim();
    const over = attributes.some((attribute) => /^\s*max-age\s*=\s*(0|-.*)\s*$/i.test(attribute));
    if (over) this.#cookies.delete(name);
    else this.#cookies.set(name, pair.slice(equals + 1).trim());
  }

  #plainFetch(url: string, init: RequestInit): Promise<Response> {
    return (this.#credentials.fetch ?? fetch)(url, init);
  }

  #url(path: string): string {
    return this.#credentials.baseURL.replace(/\/$/, '') + path;
  }
}

function withoutKey(init: RequestInit | undefined): RequestInit & { headers: Headers } {
  const headers = new Headers(init?.headers);
  if (headers.get('authorization') === `Bearer ${NO_KEY}`) headers.delete('authorization');
  return { ...init, headers };
}

/** Wait for a result that others wait for too, until the own signal aborts. */
function unlessAborted<T>(result: Promise<T>, signal: AbortSignal | null | undefined): Promise<T> {
  if (!signal) return result;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    result.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
