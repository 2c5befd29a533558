"""The chat engine alone, for benchmarks/batch.py: prompts from stdin, a measure to stdout.

Each prompt is answered by exactly `new_tokens` tokens; as many run at once as the model's entry
says, which is read from stdin too.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams
from omai_ray.engines.device import limit_threads
from omai_ray.text.chat_template import ChatTokenizer


async def measure(spec: ModelSpec, prompts: list[str], new_tokens: int) -> dict[str, float]:
    """Return the tokens generated, and the seconds from the first request to the last token."""
    limit_threads(spec.num_cpus)
    tokenizer = ChatTokenizer(locate(spec))
    rendered = [tokenizer.render([{"role": "user", "content": prompt}]) for prompt in prompts]
    engine = BatchingEngine(spec)
    engine.start()
    stops = dict.fromkeys(engine.stop_token_ids, -100.0)
    sampling = SamplingParams(temperature=0, logit_bias=stops)
    places = asyncio.Semaphore(spec.max_running_requests)

    async def one(name: str, prompt_ids: list[int]) -> int:
        async with places:
            request = GenerationRequest(name, prompt_ids, new_tokens, sampling)
            return sum([len(output.token_ids) async for output in engine.generate(request)])

    await one("warm", rendered[0])
    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(str(n), ids) for n, ids in enumerate(rendered))))
    seconds = time.perf_counter() - started
    await engine.drain()
    return {"tokens": tokens, "seconds": seconds}


def main() -> None:
    """Run as a program."""
    given = json.load(sys.stdin)
    spec = ModelSpec.model_validate(given["model"])
    print(json.dumps(asyncio.run(measure(spec, given["prompts"], given["new_tokens"]))))


if __name__ == "__main__":
    main()
