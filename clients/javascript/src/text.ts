import { type OpenAI } from 'openai';

export interface RerankParams {
  model: string;
  query: string;
  documents: readonly string[];
  /** How many to return; default: all. */
  top_n?: number | undefined;
  /** Whether results have their documents' text; default: true. */
  return_documents?: boolean | undefined;
  user?: string | undefined;
}

export interface RerankResult {
  /** The document's place in the request. */
  index: number;
  relevance_score: number;
  document?: { text: string } | null;
}

export interface InputUsage {
  prompt_tokens: number;
  total_tokens: number;
}

/** Results, the most relevant first. */
export interface RerankResponse {
  id: string;
  object: 'list';
  model: string;
  results: RerankResult[];
  usage: InputUsage;
}

/** One text with one or each of many, or as many with as many, pair by pair. */
export interface ScoreParams {
  model: string;
  text_1: string | readonly string[];
  text_2: string | readonly string[];
  user?: string | undefined;
}

export interface Score {
  object: 'score';
  index: number;
  score: number;
}

export interface ScoreResponse {
  id: string;
  object: 'list';
  created: number;
  model: string;
  data: Score[];
  usage: InputUsage;
}

/** A text, or messages as the model's chat template writes them. */
export type TokenizeParams = {
  model: string;
  /** Whether to return each token's text too. */
  return_token_strs?: boolean | undefined;
} & (
  | {
      prompt: string;
      /** Whether to add the checkpoint's own, such as [CLS]; default: true. */
      add_special_tokens?: boolean | undefined;
      messages?: never;
    }
  | {
      messages: readonly OpenAI.Chat.ChatCompletionMessageParam[];
      tools?: readonly OpenAI.Chat.ChatCompletionTool[] | undefined;
      prompt?: never;
    }
);

export interface TokenizeResponse {
  count: number;
  /** How many tokens a sequence may have. */
  max_model_len: number;
  tokens: number[];
  token_strs: string[] | null;
}

export interface DetokenizeParams {
  model: string;
  tokens: readonly number[];
}

export interface DetokenizeResponse {
  prompt: string;
}
