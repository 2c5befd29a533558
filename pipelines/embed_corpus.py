"""Embed the text column of a parquet corpus: `python -m pipelines.embed_corpus IN OUT --column C`.

The same command resumes a run that was stopped or killed, and does nothing when all is done.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError, OMAiError
from omai_ray.settings import Settings, load_settings
from omai_ray.telemetry.metrics import model_label
from pipelines.job import EmbedJob

if TYPE_CHECKING:
    from pipelines.progress import Progress
    from pipelines.report import Report

INTERRUPTED = 130


def embed_corpus(job: EmbedJob, progress: Progress | None = None) -> Report:
    """Embed a corpus on Ray and return what was done; `report.ok` tells of too many dead rows.

    Raises ConfigError before any work where the job cannot be done as asked, RunFailed where it
    stopped: what was committed stays, and the same job resumes.
    """
    from pipelines.progress import Silent
    from pipelines.ray_executor import RayExecutor
    from pipelines.run import run_job

    return run_job(job, RayExecutor, progress or Silent())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments; --config is for the caller, who reads the settings."""
    add = parser.add_argument
    add("source", metavar="IN",
        help="a parquet file, directory of them or quoted glob; s3:// and gs:// too")  # fmt: skip
    add("output", metavar="OUT",
        help="directory to write, s3:// and gs:// too; mirrors the input's files")  # fmt: skip
    add("--column", required=True, help="the text column")
    add("--model", help="a name of the catalog, a hub id or a directory (default: the catalog's)")
    add("--config", type=Path, metavar="FILE", help="YAML settings, with the catalog")
    add("--on-long", choices=["truncate", "error"], default="truncate",
        help="texts above the model's context are cut to it, or dead-lettered")  # fmt: skip
    add("--dtype", choices=["float32", "float16"], default="float32", help="of the vectors")
    add("--columns", help="input columns to carry, with commas between (default: all)")
    add("--max-dead", type=float, default=0.01, metavar="FRACTION",
        help="fail above this share of dead-lettered rows (default: 0.01)")  # fmt: skip
    add("--actors", type=int, metavar="N", help="copies of the model (default: one a free CPU)")
    add("--address", metavar="RAY",
        help="HOST:PORT of a Ray cluster, or the state directory of a running `omai-ray serve` "
        "(default: a Ray of the job's own)")  # fmt: skip
    add("--overwrite", action="store_true", help="delete an earlier run's files in OUT first")
    add("--json", action="store_true", help="print the report as JSON")


def choose_model(name: str | None, settings: Settings) -> ModelSpec:
    """Return the catalog's model of that name, or one that the name itself locates.

    Raises ConfigError or ModelNotFound where there is none, or where it does not embed.
    """
    catalog = settings.catalog
    if name is None:
        first = next((spec for spec in settings.models if spec.task == "embedding"), None)
        if first is None:
            raise ConfigError("the catalog has no embedding model; name one with --model")
        return first
    if name in catalog.models or name in catalog.aliases or not _is_location(name):
        return catalog.resolve(name, "embedding")
    short = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
    return ModelSpec(name=short, task="embedding", source=name)


def _is_location(name: str) -> bool:
    """Say whether a name is a path or a hub id, rather than a misspelt name of the catalog."""
    return "/" in name or name.startswith("builtin:") or Path(name).expanduser().is_dir()


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run the command; return its exit status.

    0: all rows are written, or dead-lettered within the limit. 1: they are not; why is on
    stderr. 130: interrupted.
    """
    from pipelines.progress import ShowProgress

    interrupted = _note_interrupts()
    try:
        job = _job(args, settings, join_ray(args.address))
        with ShowProgress() as progress:
            report = embed_corpus(job, progress)
    except (OMAiError, OSError, KeyboardInterrupt) as error:
        if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
            how = "without --overwrite " if args.overwrite else ""
            sys.stderr.write(f"interrupted: the same command {how}resumes where this one stopped\n")
            return INTERRUPTED
        sys.stderr.write(f"omai-ray: {_worded(error)}\n")
        return 1
    sys.stdout.write((report.to_json() if args.json else report.to_text()) + "\n")
    if not report.ok:
        sys.stderr.write(
            f"omai-ray: {report.dead_fraction:.2%} of the rows or files are dead-lettered, above "
            f"--max-dead {report.max_dead:g}; the reasons are in {report.output}/_dead_letters\n"
        )
    return 0 if report.ok else 1


def _note_interrupts() -> threading.Event:
    """Return what is set by Ctrl-C: within Ray its exception may come out as another."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    return interrupted


def _worded(error: OMAiError | OSError) -> str:
    if isinstance(error, OMAiError):
        return error.message
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def join_ray(address: str | None) -> str | None:
    """Return the address of the Ray to join, its token put where Ray looks for it.

    address: as the command has it; None, for a Ray of the job's own, gets a token of its own.
    Ray reads its token when it is imported, so a process that has done so keeps what it has.
    Raises ConfigError.
    """
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        return None
    state_dir = Path(address)
    if not state_dir.is_dir():
        return address
    try:
        cluster = json.loads((state_dir / "cluster.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"--address {address}: no `omai-ray serve` runs with that state"
        ) from None
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": cluster["token_file"]}
    return str(cluster["ray"])


def _job(args: argparse.Namespace, settings: Settings, address: str | None) -> EmbedJob:
    columns = None if args.columns is None else tuple(filter(None, args.columns.split(",")))
    model = choose_model(args.model, settings)
    return EmbedJob(
        source=args.source,
        output=args.output if "://" in args.output else Path(args.output),
        column=args.column,
        model=model,
        metrics_model=model_label(model.name, settings.catalog.models),
        columns=columns,
        on_long=args.on_long,
        dtype=args.dtype,
        max_dead=args.max_dead,
        actors=args.actors,
        address=address,
        overwrite=args.overwrite,
    )


def main(argv: list[str] | None = None) -> int:
    """Run as a program of its own."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.embed_corpus", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        settings = load_settings(args.config)
    except OMAiError as error:
        sys.stderr.write(f"omai-ray: {error.message}\n")
        return 1
    return run(args, settings)


if __name__ == "__main__":
    sys.exit(main())
