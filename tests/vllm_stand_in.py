"""A stand-in for vLLM, which needs an environment and a GPU of its own.

Its classes take and give what those of vLLM do (names and meanings as in vllm/sampling_params.py,
vllm/outputs.py and vllm/v1/engine/async_llm.py at version 0.33); an unknown argument is a
TypeError. Tokens are really those of a model, computed by transformers one sequence at a time.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class VLLMClientError(Exception):
    pass


class VLLMValidationError(VLLMClientError):
    pass


@dataclass
class StructuredOutputsConfig:
    backend: str = "auto"


@dataclass
class StructuredOutputsParams:
    json: str | None = None
    regex: str | None = None
    grammar: str | None = None


@dataclass
class SamplingParams:
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise VLLMValidationError(f"top_p must be in (0, 1], got {self.top_p}.")
        if not 0 <= self.temperature <= 2:
            raise VLLMValidationError(f"temperature must be in [0, 2], got {self.temperature}.")


@dataclass
class AsyncEngineArgs:
    model: str
    tokenizer: str
    trust_remote_code: bool = False
    load_format: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    enable_prefix_caching: bool | None = None
    disable_log_stats: bool = False
    enable_log_requests: bool = False
    structured_outputs_config: StructuredOutputsConfig | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    scheduling_policy: str = "fcfs"


@dataclass
class Logprob:
    logprob: float
    rank: int


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    index: int = 0


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None


class EngineGenerateError(Exception):
    pass


@dataclass
class _ModelConfig:
    vocab_size: int

    def get_vocab_size(self) -> int:
        return self.vocab_size


@dataclass
class _Sequence:
    params: SamplingParams
    prompt: list[int]
    cached: int
    new: list[int] = field(default_factory=list)
    aborted: bool = False


class AsyncLLM:
    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=getattr(torch, arguments.dtype)
        )
        self.model_config = _ModelConfig(self._model.config.vocab_size)
        self._sequences: dict[str, _Sequence] = {}
        self._seen: list[tuple[str | None, list[int]]] = []
        self._orders = arguments.scheduling_policy == "priority"
        self.priorities: dict[str, int] = {}
        self.errored = False

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> AsyncLLM:
        return cls(engine_args)

    async def generate(
        self,
        prompt: dict[str, Any],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        if priority and not self._orders:
            raise NotImplementedError("the stand-in would ignore a priority")
        self.priorities[request_id] = priority
        params, ids = sampling_params, list(prompt["prompt_token_ids"])
        if params.output_kind is not RequestOutputKind.DELTA or params.detokenize:
            raise NotImplementedError("the stand-in gives deltas of token ids only")
        if params.structured_outputs is not None:
            raise VLLMValidationError("the stand-in has no grammars")
        salt = prompt.get("cache_salt")
        hit = any(owner == salt and seen == ids for owner, seen in self._seen)
        sequence = _Sequence(params, ids, (len(ids) - 1) // 16 * 16 if hit else 0)
        self._sequences[request_id] = sequence
        generator = torch.Generator()
        if params.seed is not None:
            generator.manual_seed(params.seed)
        try:
            finish = logits = None
            while finish is None:
                await asyncio.sleep(0)
                if sequence.aborted:
                    yield _output(request_id, sequence, [], logits, "abort")
                    return
                logits = self._logits(sequence)
                token = _choose(logits, sequence, generator)
                sequence.new.append(token)
                if token in (params.stop_token_ids or []):
                    finish = "stop"
                elif len(sequence.new) == params.max_tokens:
                    finish = "length"
                yield _output(request_id, sequence, [token], logits, finish)
            self._seen.append((salt, ids))
        except VLLMClientError:
            raise
        except Exception as error:
            raise EngineGenerateError from error
        finally:
            del self._sequences[request_id]

    async def abort(self, request_id: str) -> None:
        if request_id in self._sequences:
            self._sequences[request_id].aborted = True

    def shutdown(self) -> None:
        self.errored = True

    @torch.inference_mode()
    def _logits(self, sequence: _Sequence) -> Tensor:
        ids = torch.tensor([sequence.prompt + sequence.new])
        logits: Tensor = self._model(ids).logits[0, -1].float()
        return logits


def _choose(logits: Tensor, sequence: _Sequence, generator: torch.Generator) -> int:
    params, logits = sequence.params, logits.clone()
    for token, count in Counter(sequence.new).items():
        logits[token] -= params.frequency_penalty * count + params.presence_penalty
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    if params.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / params.temperature).softmax(0), 1, generator=generator))


def _output(
    request_id: str,
    sequence: _Sequence,
    tokens: list[int],
    logits: Tensor | None,
    finish: str | None,
) -> RequestOutput:
    count, logprobs = sequence.params.logprobs, None
    if count is not None and logits is not None:
        values = logits.log_softmax(0)
        order = values.argsort(descending=True).tolist()
        shown = {*order[:count], *tokens}
        logprobs = [
            {
                other: Logprob(float(values[other]), rank)
                for rank, other in enumerate(order, start=1)
                if other in shown
            }
        ]
    completion = CompletionOutput(tokens, logprobs, finish)
    return RequestOutput(request_id, [completion], finish is not None, sequence.cached)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `import vllm` find the stand-in."""
    contents: dict[str, dict[str, Any]] = {
        "vllm": {
            "AsyncEngineArgs": AsyncEngineArgs,
            "SamplingParams": SamplingParams,
            "TokensPrompt": dict,
        },
        "vllm.config": {"StructuredOutputsConfig": StructuredOutputsConfig},
        "vllm.exceptions": {"VLLMClientError": VLLMClientError},
        "vllm.sampling_params": {
            "RequestOutputKind": RequestOutputKind,
            "StructuredOutputsParams": StructuredOutputsParams,
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
