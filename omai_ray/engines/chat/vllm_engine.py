"""vLLM behind the same protocol, for GPUs: it schedules, samples and keeps the prefix cache itself.

vLLM pins its own torch and transformers, so it is imported when an engine starts, in a replica that
has an environment with it (`runtime_env` of the model's entry).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.checks import check_request, check_room
from omai_ray.engines.chat.protocol import (
    EngineFinish,
    EngineStats,
    GenerationRequest,
    Grammar,
    StepOutput,
    TokenLogprobs,
)
from omai_ray.engines.checkpoint import check_safe, stop_tokens
from omai_ray.engines.heartbeat import Heartbeat
from omai_ray.errors import ConfigError, InvalidRequest, ServerError
from omai_ray.priority import PRIORITIES, Priority
from omai_ray.text.tokenizer import TextTokenizer, longest_context

_USED_OF_SHARE = 0.9  # of its part of a GPU, as vLLM's own default is of a whole one
_LEAST_TOP_P = 1e-6  # vLLM refuses 0, which means the likeliest token alone
_LARGEST_SEED = 2**63 - 1  # -1 would be none
_GRAMMARS = {"json_schema": "json", "regex": "regex", "lark": "grammar"}


class VllmEngine:
    """Implements ChatEngine over vLLM's AsyncLLM.

    What vLLM decides stays its own: requests run in order of arrival, those of batches after all
    others, whatever their account, and the same seed gives the same tokens as far as vLLM's kernels
    do. An account's cached prompts are
    its own here too. Raises CheckpointError or ConfigError where the model cannot be used.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._directory = locate(spec)
        check_safe(self._directory)
        self.context = longest_context(
            self._directory, TextTokenizer(self._directory), spec.context
        )
        self.stop_token_ids = stop_tokens(self._directory)
        self._running: set[str] = set()
        self._waiting: set[str] = set()
        self._here: Counter[Priority] = Counter()
        self._aborts: set[asyncio.Task[None]] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._heartbeat = Heartbeat(spec.step_timeout_s)

    def start(self) -> None:
        """Have vLLM load the weights, in a process of its own; returns once it has."""
        try:
            import vllm
            from vllm.config import StructuredOutputsConfig
            from vllm.exceptions import VLLMClientError
            from vllm.sampling_params import StructuredOutputsParams
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ConfigError(
                f"engine vllm needs vLLM in the replica's environment: pip install "
                f"'omai-ray[vllm]' there, and name it in the model's `runtime_env` ({error})"
            ) from error
        self._vllm, self._structured, self._refusal = vllm, StructuredOutputsParams, VLLMClientError
        forms = StructuredOutputsConfig(backend="guidance")
        try:
            arguments = vllm.AsyncEngineArgs(**self._arguments(), structured_outputs_config=forms)
        except TypeError as error:
            raise ConfigError(f"model '{self._spec.name}': engine_args: {error}") from error
        self._llm = AsyncLLM.from_engine_args(arguments)
        self.vocab_size = int(self._llm.model_config.get_vocab_size())

    def _arguments(self) -> dict[str, Any]:
        own = {
            "model": str(self._directory),
            "tokenizer": str(self._directory),
            "trust_remote_code": False,
            "load_format": "safetensors",
            "dtype": self._spec.dtype,
            "max_model_len": self.context,
            "max_num_seqs": self._spec.max_running_requests,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "enable_log_requests": False,
            "scheduling_policy": "priority",
        }
        if self._spec.memory_share < 1:
            own["gpu_memory_utilization"] = self._spec.memory_share * _USED_OF_SHARE
        if self._spec.kv_cache_gib is not None:
            own["kv_cache_memory_bytes"] = int(self._spec.kv_cache_gib * 2**30)
        twice = sorted(own.keys() & self._spec.engine_args.keys())
        if twice:
            raise ConfigError(
                f"model '{self._spec.name}': engine_args sets {', '.join(twice)}, which other "
                "settings of the model decide"
            )
        return own | self._spec.engine_args

    async def drain(self) -> None:
        """Finish every accepted request, then end vLLM."""
        self._draining = True
        await self._idle.wait()
        await asyncio.to_thread(self._llm.shutdown)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        """Yield the request's tokens as they are sampled.

        Raises InvalidRequest or ContextTooLong for what cannot be run, and Overloaded when the
        queue is full or the engine is draining. Leaving the iterator early cancels the request.
        """
        check_request(request, self.vocab_size, self.context)
        behind = self._here[request.priority] - self._spec.max_running_requests
        check_room(behind, self._spec.max_queued_requests, draining=self._draining)
        name = request.request_id
        try:
            outputs = self._llm.generate(
                self._prompt(request),
                self._sampling(request),
                name,
                priority=PRIORITIES.index(request.priority),  # what is less comes first
            )
        except self._refusal as error:
            raise _refused(request, error) from error
        self._waiting.add(name)
        self._here[request.priority] += 1
        self._idle.clear()
        self._heartbeat.begin()
        try:
            while (output := await _next(outputs, request.deadline)) is not None:
                self._heartbeat.beat()
                self._waiting.discard(name)
                self._running.add(name)
                yield _step_output(output, request.sampling.logprobs)
        except TimeoutError:
            yield StepOutput([], "error", error="deadline exceeded")
        except self._refusal as error:
            raise _refused(request, error) from error
        except Exception as error:  # handed to the request it belongs to
            yield StepOutput([], "error", error=type(error).__name__)
        finally:
            self._waiting.discard(name)
            self._running.discard(name)
            self._here[request.priority] -= 1
            await outputs.aclose()
            if not self._running | self._waiting:
                self._idle.set()
                self._heartbeat.rest()

    def abort(self, request_id: str) -> None:
        """Cancel a request, if it is still there: its iterator ends with finish `abort`."""
        if request_id in self._waiting | self._running:
            task = asyncio.get_running_loop().create_task(self._llm.abort(request_id))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    def stats(self) -> EngineStats:
        """Return what has begun to answer, and what has not."""
        return EngineStats(len(self._running), len(self._waiting))

    def check_health(self) -> None:
        """Raise ServerError where vLLM's process has ended, or gives no request anything."""
        if self._llm.errored:
            raise ServerError("vLLM's engine is not running")
        self._heartbeat.check()

    def _prompt(self, request: GenerationRequest) -> Any:
        prompt = self._vllm.TokensPrompt(prompt_token_ids=request.prompt_ids)
        if request.account:
            prompt["cache_salt"] = request.account
        return prompt

    def _sampling(self, request: GenerationRequest) -> Any:
        sampling = request.sampling
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=max(sampling.top_p, _LEAST_TOP_P),
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seed=None if sampling.seed is None else sampling.seed & _LARGEST_SEED,
            logit_bias=dict(sampling.logit_bias) or None,
            logprobs=sampling.logprobs,
            max_tokens=min(request.max_new_tokens, self.context - len(request.prompt_ids)),
            stop_token_ids=sorted(self.stop_token_ids),
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
            structured_outputs=self._constraint(request.grammar),
        )

    def _constraint(self, grammar: Grammar | None) -> Any:
        if grammar is None:
            return None
        return self._structured(**{_GRAMMARS[grammar.kind]: grammar.source})


def _refused(request: GenerationRequest, error: Exception) -> InvalidRequest:
    param = request.grammar.param if request.grammar is not None else None
    return InvalidRequest(str(error), param=param)


async def _next(outputs: AsyncGenerator[Any, None], deadline: float | None) -> Any:
    """Return the next output, None after the last. Raises TimeoutError once it is too late.

    A timeout around the caller's loop would also cancel what its consumer does between outputs.
    """
    if deadline is None:
        return await anext(outputs, None)
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    async with asyncio.timeout(left):
        return await anext(outputs, None)


def _step_output(output: Any, logprobs: int | None) -> StepOutput:
    """Translate a RequestOutput of one completion, a delta."""
    (completion,) = output.outputs
    token_ids = list(completion.token_ids)
    reported = None
    if token_ids and logprobs is not None:
        pairs = zip(token_ids, completion.logprobs or [], strict=True)
        reported = [_token_logprobs(token, found, logprobs) for token, found in pairs]
    return StepOutput(
        token_ids,
        _finish(completion.finish_reason),
        reported,
        cached_tokens=output.num_cached_tokens or 0,
    )


def _token_logprobs(token: int, found: dict[int, Any], count: int) -> TokenLogprobs:
    """Translate one position: {token id: (logprob, rank from 1)}, the sampled token among them."""
    ranked = sorted(found.items(), key=lambda item: item[1].rank)
    top = [(other, value.logprob) for other, value in ranked if value.rank <= count]
    return TokenLogprobs(found[token].logprob, top)


def _finish(reason: str | None) -> EngineFinish | None:
    known: dict[str | None, EngineFinish | None] = {
        None: None,
        "stop": "stop",
        "length": "length",
        "abort": "abort",
    }
    return known.get(reason, "error")
