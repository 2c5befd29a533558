"""Train the demonstration chat model from generated dialogues alone.

Run as `python -m omai_ray.models.train_chat`. The number of steps is fixed, so a run depends
on its seed and not on the clock.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from omai_ray.models import CHAT_MODEL_DIR
from omai_ray.models.chat_tokens import CONTEXT_TOKENS, render, train_tokenizer, wrap
from omai_ray.models.dialogues import SKILLS, dialogues
from omai_ray.models.muon import Muon
from omai_ray.models.packing import IGNORED, Batch, batches, rows, token_stream

SHORT_TOKENS, SHORT_ROWS = 384, 8
LONG_ROWS = 2
LONG_FIRST_STEP, LONG_PERIOD = 3000, 16
WARMUP_STEPS = 60
DECAY_PART = 0.45
MUON_RATE, ADAM_RATE = 3.6e-3, 2.5e-3
TOKENIZER_DIALOGUES_PER_SKILL = 2500
TOKENIZER_LONG_DIALOGUES = 100
MAX_PARAMETERS = 6_000_000


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    out: Path
    steps: int
    seed: int
    threads: int
    compiled: bool
    save_period: int


def make_tokenizer(seed: int) -> Any:
    """Train the tokenizer on rendered training dialogues of every skill."""
    plain = wrap(Tokenizer(models.BPE()))
    texts = []
    for skill in SKILLS:
        count = TOKENIZER_LONG_DIALOGUES if skill == "long" else TOKENIZER_DIALOGUES_PER_SKILL
        texts += [render(plain, made) for made in dialogues(seed, "train", count, skill)]
    return train_tokenizer(texts)


def make_model(tokenizer: Any, seed: int) -> Qwen3ForCausalLM:
    """Build the untrained model, of at most MAX_PARAMETERS parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # each layer starts as the identity, which speeds up the first steps
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    if model.num_parameters() > MAX_PARAMETERS:
        raise ValueError(f"{model.num_parameters()} parameters; at most {MAX_PARAMETERS} allowed")
    return model


def make_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Use Muon for the matrices of the layers and AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=MUON_RATE, weight_decay=0.02),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Give the learning rate as a part of its peak: warm up, hold, fall over the last DECAY_PART.

    The fall is one minus the square root of its progress. Source: Hägele et al. 2024, section 3.
    """
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    first = steps * (1 - DECAY_PART)
    progress = max(0.0, (step - first) / (steps - first))
    return warm * (1 - math.sqrt(progress))


def loss_of(core: Callable[..., Any], model: Qwen3ForCausalLM, batch: Batch) -> Tensor:
    """Compute the mean loss over assistant tokens; only those go through the output layer."""
    hidden = core(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)[0]
    targets = batch.labels[:, 1:]
    said = targets != IGNORED
    logits = model.lm_head(hidden[:, :-1][said])
    return cross_entropy(logits, targets[said])


def is_long_step(step: int) -> bool:
    """Tell whether a step trains on rows of the full context."""
    return step >= LONG_FIRST_STEP and step % LONG_PERIOD == 0


def training_batches(tokenizer: Any, seed: int, steps: int) -> Iterator[Batch]:
    """Yield a batch for each step."""
    short = rows(token_stream(tokenizer, seed, None, SHORT_TOKENS), SHORT_TOKENS)
    long = rows(token_stream(tokenizer, seed + 1, "long", CONTEXT_TOKENS), CONTEXT_TOKENS, 6)
    short_batches, long_batches = batches(short, SHORT_ROWS), batches(long, LONG_ROWS)
    for step in range(steps):
        yield next(long_batches if is_long_step(step) else short_batches)


def save(model: Qwen3ForCausalLM, tokenizer: Any, out: Path) -> None:
    """Write the model in bfloat16 with its tokenizer and generation settings."""
    copy = Qwen3ForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train(plan: Plan) -> None:
    """Run the plan and write the model."""
    torch.set_num_threads(plan.threads)
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    tokenizer = make_tokenizer(plan.seed)
    model = make_model(tokenizer, plan.seed)
    print(f"{len(tokenizer)} tokens in vocabulary, {model.num_parameters()} parameters", flush=True)
    core = torch.compile(model.model, dynamic=False) if plan.compiled else model.model
    optimizers = make_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    tokens, recent = 0, 0.0
    for step, batch in enumerate(training_batches(tokenizer, plan.seed, plan.steps)):
        loss = loss_of(core, model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate_factor(step, plan.steps)
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.ids.numel()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % 25 == 0 or step == plan.steps - 1:
            _report(step, plan.steps, recent, tokens, time.monotonic() - began_s)
        if (step + 1) % plan.save_period == 0:
            save(model, tokenizer, plan.out)
    save(model, tokenizer, plan.out)
    wall_min = (time.monotonic() - began_s) / 60
    cpu_min = (time.process_time() - began_cpu_s) / 60
    print(f"done: {plan.steps} steps, {tokens} tokens, {wall_min:.1f} min, {cpu_min:.1f} CPU min")


def _report(step: int, steps: int, loss: float, tokens: int, spent_s: float) -> None:
    left_min = spent_s / (step + 1) * (steps - step - 1) / 60
    print(
        f"step {step + 1}/{steps} loss {loss:.4f} {tokens / spent_s:.0f} tokens/s "
        f"{spent_s / 60:.1f} min spent, {left_min:.1f} min left",
        flush=True,
    )


def parse(arguments: list[str] | None = None) -> Plan:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=CHAT_MODEL_DIR)
    parser.add_argument("--steps", type=int, default=6600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-period", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--eager", action="store_true", help="train without torch.compile")
    options = parser.parse_args(arguments)
    return Plan(
        out=options.out,
        steps=options.steps,
        seed=options.seed,
        threads=options.threads,
        compiled=not options.eager,
        save_period=options.save_period,
    )


if __name__ == "__main__":
    train(parse())
