import { type APIPromise, type OpenAI } from 'openai';

/** What usage may be grouped by, beside time. */
export type UsageGroup = 'model' | 'key';

/** A span of time in whole hours, in seconds since the epoch. */
export interface UsageListParams {
  /** Default: the beginning. */
  start_time?: number | undefined;
  /** Default: now. */
  end_time?: number | undefined;
  /** One row an hour or a day; default: one for the whole span. */
  bucket_width?: '1h' | '1d' | undefined;
  /** Default: model. */
  group_by?: UsageGroup | readonly UsageGroup[] | undefined;
}

/** What was used; null is what it is not grouped by, or a key where there was none. */
export interface UsageRow {
  object: 'usage';
  start_time: number | null;
  account_id: string | null;
  model: string | null;
  key_id: string | null;
  requests: number;
  prompt_tokens: number;
  completion_tokens: number;
  cached_tokens: number;
  total_tokens: number;
  cost: number;
}

export interface UsageList {
  object: 'list';
  data: UsageRow[];
}

/** What the caller's account has used. */
export class Usage {
  readonly #client: OpenAI;

  constructor(client: OpenAI) {
    this.#client = client;
  }

  /** List usage in the order of time, model and key. */
  list(params: UsageListParams = {}, options?: OpenAI.RequestOptions): APIPromise<UsageList> {
    const { group_by, ...query } = params;
    return this.#client.get('/usage', {
      query: group_by === undefined ? query : { ...query, group_by: [group_by].flat().join(',') },
      ...options,
    });
  }
}
