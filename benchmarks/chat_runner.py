"""One way of generating, in a process of its own: run by chat.py, never by hand.

`chat_runner.py NAME MODEL NEW_TOKENS` loads MODEL, generates once to warm up and prints `ready`.
Then each line with a number on stdin continues so many prompts at once, greedily, by NEW_TOKENS
each, and prints how many seconds it took.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Prompts = list[list[int]]
Generate = Callable[[Prompts], list[list[int]]]
PROMPT_TOKENS = 128


def omai_ray(model: str, new_tokens: int) -> Generate:
    """Generate with the engine of a replica."""
    from omai_ray.catalog import ModelSpec
    from omai_ray.engines.chat.batching_engine import BatchingEngine
    from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams
    from omai_ray.engines.device import has_bfloat16

    dtype: Any = "bfloat16" if has_bfloat16() else "float32"
    engine = BatchingEngine(ModelSpec(name="m", task="chat", source=model, dtype=dtype))
    engine.start()
    greedy = SamplingParams(temperature=0)

    async def one(number: int, prompt: list[int]) -> list[int]:
        # An account each, so that no prompt of an earlier round is found again.
        account = str(time.monotonic_ns())
        request = GenerationRequest(str(number), prompt, new_tokens, greedy, account=account)
        return [t async for output in engine.generate(request) for t in output.token_ids]

    async def all_of(prompts: Prompts) -> list[list[int]]:
        return await asyncio.gather(*(one(at, prompt) for at, prompt in enumerate(prompts)))

    return lambda prompts: asyncio.run(all_of(prompts))


def _load(model: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model).eval()


def generate(model: str, new_tokens: int) -> Generate:
    """Generate for all prompts as one static batch, as `model.generate` does."""
    loaded = _load(model)

    def run(prompts: Prompts) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = loaded.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [row[len(prompts[0]) :].tolist() for row in out]

    return run


def transformers_cb(model: str, new_tokens: int) -> Generate:
    """Generate with transformers' continuous batching."""
    from transformers import GenerationConfig

    loaded = _load(model)
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1)
    loaded.generation_config = config

    def run(prompts: Prompts) -> list[list[int]]:
        with torch.no_grad():
            out = loaded.generate_batch(inputs=prompts, generation_config=config)
        return [result.generated_tokens for result in out.values()]

    return run


RUNNERS: dict[str, Callable[[str, int], Generate]] = {
    "omai_ray": omai_ray,
    "generate": generate,
    "static_batch": generate,
    "transformers_cb": transformers_cb,
}


def main() -> None:
    """Run as a program."""
    name, model, new_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    run = RUNNERS[name](model, new_tokens)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 49152, (32, PROMPT_TOKENS), generator=generator).tolist()
    run(prompts[:2])
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        answers = run(prompts[:count])
        seconds = time.perf_counter() - start
        if [len(answer) for answer in answers] != [new_tokens] * count:
            raise SystemExit(f"{name} did not generate {new_tokens} tokens for each prompt")
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
