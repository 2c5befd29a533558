"""`omai-ray corpus`: what `omai-ray embed` would do, and whether what it did is still whole."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omai_ray.cli.common import Commands, add_json, group
from omai_ray.errors import ConfigError
from omai_ray.settings import load_settings

if TYPE_CHECKING:
    from pipelines.estimate import Estimate, Sample
    from pipelines.job import EmbedJob
    from pipelines.preview import Preview


def add(commands: Commands) -> None:
    """Add the commands."""
    from pipelines.embed_corpus import add_corpus_arguments, add_price

    corpus = group(commands, "corpus", "look at a corpus and its output before and after `embed`")
    plan = corpus.add_parser(
        "plan",
        help="tell what `embed` would do, how long it would take, and what it would cost",
        description="Tell what `omai-ray embed` would do, how long it would take and what it would "
        "cost. Nothing is written. Tokens are estimated from rows of up to 16 units.",
    )
    plan.set_defaults(run=_worded(_plan))
    add_corpus_arguments(plan)
    speed = plan.add_mutually_exclusive_group()
    speed.add_argument("--tokens-per-s", type=_positive, metavar="N",
        help="speed of one actor (default: that of the last run into OUT)")  # fmt: skip
    speed.add_argument("--measure", action="store_true",
        help="measure it here: load the model, and run it for five seconds")  # fmt: skip
    plan.add_argument("--actors", type=_count, metavar="N",
        help="copies of the model (default: as many as the last run used, or 1)")  # fmt: skip
    add_price(plan)
    add_json(plan)

    diff = corpus.add_parser(
        "diff",
        help="list what is new, changed or gone since the last run into OUT",
        description="List the files that are new, changed or gone since the last run into OUT, and "
        "the settings that differ from it. Nothing is written.",
    )
    diff.set_defaults(run=_worded(_diff))
    add_corpus_arguments(diff)
    diff.add_argument("--exit-code", action="store_true", help="exit with 1 where anything differs")
    add_json(diff)

    verify = corpus.add_parser(
        "verify",
        help="read an output again and check it against its records",
        description="Read every file of an output again, and check it against the run's records: "
        "sizes, SHA-256, footers, counts, vectors, dead letters, files that no run wrote.",
    )
    verify.set_defaults(run=_worded(_verify))
    verify.add_argument("output", metavar="OUT", help="an output of `omai-ray embed`")
    add_json(verify)


def _worded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a command that says in one line what the filesystem refused."""

    def run_worded(args: argparse.Namespace) -> int:
        from pipelines.embed_corpus import worded

        try:
            return run(args)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ConfigError(worded(error)) from error

    return run_worded


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got '{text}'")
    return int(text)


def _preview(args: argparse.Namespace, **options: Any) -> tuple[EmbedJob, Preview]:
    from pipelines.embed_corpus import make_job
    from pipelines.preview import preview

    job = make_job(args, load_settings(args.config), **options)
    return job, preview(job)


def _plan(args: argparse.Namespace) -> int:
    from pipelines.estimate import TokenizerOnly, estimate, measure, sample

    job, found = _preview(args, actors=args.actors, price_per_hour=args.price_per_hour)
    sampled = sample(job, found, TokenizerOnly(job.model))
    speed = args.tokens_per_s
    if args.measure and found.pending:
        speed = measure(job.engine_factory(job.model), sampled)
    result = estimate(job, found, sampled, speed)
    if args.json:
        print(json.dumps(_plan_json(found, sampled, result), indent=2))
    else:
        _print_lines(_plan_lines(job, found, sampled, result))
    return 0


def _plan_json(found: Preview, sampled: Sample, result: Estimate) -> dict[str, Any]:
    return {
        **found.counts(),
        "settings": _settings_json(found),
        "sample": {
            "rows": sampled.rows,
            "dead": sampled.dead,
            "truncated": sampled.truncated,
            "tokens_per_row": sampled.tokens_per_row,
            "margin": sampled.margin,
        },
        "tokens": result.tokens,
        "actors": result.actors,
        "tokens_per_actor_s": result.tokens_per_actor_s,
        "run_s": result.run_s,
        "price_per_hour": result.price_per_hour,
        "cost_per_million_tokens": result.cost_per_million_tokens,
        "cost": result.cost,
    }


def _settings_json(found: Preview) -> dict[str, dict[str, Any]]:
    return {key: {"was": was, "is": now} for key, (was, now) in found.settings.items()}


def _plan_lines(
    job: EmbedJob, found: Preview, sampled: Sample, result: Estimate
) -> list[tuple[str, str]]:
    counts = {name: f"{count:,}" for name, count in found.counts().items()}
    size = f"{sum(file.size for file in found.files) / 1e6:,.1f} MB"
    rejected = f", {counts['files_rejected']} of them unreadable" if found.rejected else ""
    lines = [
        ("input", f"{counts['files']} files{rejected}, {counts['rows']} rows, {size}"),
        ("files", "{files_new} new, {files_changed} changed, {files_deleted} gone, "
         "{files_unfinished} unfinished".format(**counts)),
        ("units", "{units_pending} of {units} to do, {rows_pending} rows".format(**counts)),
    ]  # fmt: skip
    if found.stale:
        lines.append(("to remove", f"{len(found.stale):,} outputs"))
    if found.settings:
        lines.append(("refused", "settings differ; only with --overwrite, and then all is done"))
        lines += [("", _setting(key, *values)) for key, values in found.settings.items()]
    if found.pending:
        lines += [("tokens", _tokens(sampled, result)), *_speed_lines(job, result)]
    return lines


def _tokens(sampled: Sample, result: Estimate) -> str:
    margin = "" if sampled.margin is None else f", give or take {sampled.margin:.1%}"
    if sampled.margin == 0:
        margin = ", counted"
    return (
        f"{result.tokens:,}{margin}; of {sampled.rows:,} rows {sampled.truncated:,} are cut to the "
        f"context and {sampled.dead:,} dead-lettered"
    )


def _speed_lines(job: EmbedJob, result: Estimate) -> list[tuple[str, str]]:
    from pipelines.progress import clock

    if result.tokens_per_actor_s is None or result.run_s is None:
        return [("time", "unknown: give --tokens-per-s or --measure")]
    each = f"{result.actors:,} actors of {result.tokens_per_actor_s:,.0f} tokens/s"
    lines = [("time", f"{clock(result.run_s)} with {each}")]
    if result.cost is not None:
        lines.append(
            (
                "cost",
                f"{result.cost:,.4g}, {result.cost_per_million_tokens:.4g} a million tokens, "
                f"at {job.price_per_hour:g} an hour of an actor",
            )
        )
    return lines


def _diff(args: argparse.Namespace) -> int:
    _, found = _preview(args)
    rejected = [file.file.name for file in found.rejected]
    names = {
        "new": found.new,
        "changed": found.changed,
        "gone": found.deleted,
        "unfinished": found.unfinished,
        "unreadable": rejected,
    }
    if args.json:
        outputs = {
            "outputs_to_write": [unit.output for unit in found.pending],
            "outputs_to_remove": [entry.output for entry in found.stale],
        }
        print(json.dumps({**names, **outputs, "settings": _settings_json(found)}, indent=2))
    else:
        lines = [("setting", _setting(key, *values)) for key, values in found.settings.items()]
        lines += [(kind, name) for kind, listed in names.items() for name in listed]
        _print_lines(lines or [("nothing differs", "")])
    return int(args.exit_code and found.differs)


def _setting(key: str, was: Any, now: Any) -> str:
    return f"{key} was {was!r} and is now {now!r}"


def _verify(args: argparse.Namespace) -> int:
    from pipelines.verify import verify

    found = verify(args.output)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0 if found.ok else 1
    for defect in found.defects:
        print(f"{defect.file}: {defect.problem}")
    print(
        f"{found.files:,} files, {found.rows_written:,} rows, {found.bytes / 1e6:,.1f} MB, "
        f"{found.rows_dead:,} rows dead-lettered: {len(found.defects):,} defects"
    )
    return 0 if found.ok else 1


def _print_lines(lines: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print(f"{label:<{width}}  {value}".rstrip())
