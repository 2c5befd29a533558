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
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from omai_ray.catalog import ModelSpec
from omai_ray.errors import INTERRUPTED, ConfigError, OMAiError
from omai_ray.leaving import leave
from omai_ray.settings import Settings, load_settings
from omai_ray.telemetry.metrics import model_label
from pipelines.chunk import Chunking
from pipelines.job import EmbedJob
from pipelines.sinks.sink import FORMS, parse_target
from pipelines.text_source import read_escapes

if TYPE_CHECKING:
    from pipelines.progress import Progress
    from pipelines.report import Report


def embed_corpus(job: EmbedJob, progress: Progress | None = None) -> Report:
    """Embed a corpus on Ray and return what was done; `report.ok` tells of too many dead rows.

    Raises ConfigError before any work where the job cannot be done as asked, RunFailed where it
    stopped: what was committed stays, and the same job resumes.
    """
    from pipelines.progress import Silent
    from pipelines.ray_executor import RayExecutor
    from pipelines.run import run_job

    return run_job(job, RayExecutor, progress or Silent())


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """Define what says which corpus becomes which output; --config is read by the caller."""
    add = parser.add_argument
    add("source", metavar="IN",
        help="a parquet file, directory of them or quoted glob; s3:// and gs:// too")  # fmt: skip
    add("output", metavar="OUT",
        help="directory to write, s3:// and gs:// too; mirrors the input's files")  # fmt: skip
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--column", help="the text column")
    text.add_argument("--template", metavar="TEXT",
        help=r"several columns as one text, such as '{title}\n{body}'")  # fmt: skip
    add("--model", help="a name of the catalog, a hub id or a directory (default: the catalog's)")
    add("--config", type=Path, metavar="FILE", help="YAML settings, with the catalog")
    add("--on-long", choices=["truncate", "error", "chunk"], default="truncate",
        help="texts above the model's context are cut to it, dead-lettered, or cut into chunks, "
        "a row each (default: truncate)")  # fmt: skip
    add("--chunk-tokens", type=int, metavar="N",
        help="most tokens of a chunk (default: the model's context)")  # fmt: skip
    add("--chunk-overlap", type=int, default=0, metavar="N",
        help="tokens of a chunk that the next begins with (default: 0)")  # fmt: skip
    add("--chunk-pool", choices=["mean"], help="write one row a text: the mean of its chunks")
    add(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of the vectors (default: float32)",
    )
    add("--columns", help="input columns to carry, with commas between (default: all)")
    add("--row-id", action="store_true", help="add the columns source_file and source_row")


def add_price(parser: argparse.ArgumentParser) -> None:
    """Define --price-per-hour."""
    parser.add_argument("--price-per-hour", type=float, metavar="PRICE",
        help="of an actor's CPUs or GPU, to say what a million tokens cost")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    add_corpus_arguments(parser)
    add = parser.add_argument
    add("--max-dead", type=float, default=0.01, metavar="FRACTION",
        help="fail above this share of dead-lettered rows (default: 0.01)")  # fmt: skip
    add("--actors", type=_actors, default=(None, None), metavar="N|MIN:MAX",
        help="copies of the model; with MIN:MAX more are added while all are busy "
        "(default: as many as fit in what Ray has free)")  # fmt: skip
    add("--leave-cpus", type=float, default=0.0, metavar="N",
        help="CPUs to leave of those that are free at the start")  # fmt: skip
    add("--leave-gpus", type=float, default=0.0, metavar="N", help="the same of GPUs")
    add("--cache", type=Path, metavar="DIR",
        help="keep vectors on the nodes' disks, for identical texts of any run")  # fmt: skip
    add("--address", metavar="RAY",
        help="HOST:PORT of a Ray cluster, or the state directory of a running `omai-ray serve` "
        "(default: a Ray of the job's own)")  # fmt: skip
    add("--sink", metavar="URI", help=f"also feed a vector store: {FORMS}")
    add("--overwrite", action="store_true", help="delete an earlier run's files in OUT first")
    add("--report", type=Path, metavar="FILE.html",
        help="write the run's page here too (it is OUT/_run/report.html)")  # fmt: skip
    add("--json", action="store_true", help="print the report as JSON")
    add_price(parser)


def _actors(text: str) -> tuple[int, int | None]:
    """Return the least and the most; no most where the number is fixed."""
    least, colon, most = text.partition(":")
    try:
        return int(least), int(most) if colon else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected such as 4 or 2:8, got '{text}'") from None


def choose_model(name: str | None, settings: Settings) -> ModelSpec:
    """Return the catalog's model of that name, or one that the name itself locates.

    Raises ConfigError where there is none, and ModelNotFound where it does not embed.
    """
    catalog = settings.catalog
    if name is None:
        first = next((spec for spec in settings.models if spec.task == "embedding"), None)
        if first is None:
            raise ConfigError("the catalog has no embedding model; name one with --model")
        return first
    if name in catalog.models or name in catalog.aliases:
        return catalog.resolve(name, "embedding")
    if not _is_location(name):
        names = ", ".join(spec.name for spec in settings.models if spec.task == "embedding")
        raise ConfigError(
            f"there is no model '{name}': --model takes one of the catalog's ({names}), a "
            "directory, or an ORG/NAME of the hub"
        )
    short = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
    return ModelSpec(name=short, task="embedding", source=name)


def _is_location(name: str) -> bool:
    """Say whether a name is a path or a hub id, rather than a misspelt name of the catalog."""
    return "/" in name or name.startswith("builtin:") or Path(name).expanduser().is_dir()


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run the command; return its exit status.

    0: all rows are written, or dead-lettered within the limit. 1: they are not; why is on
    stderr. 130: ended by SIGINT or SIGTERM.
    """
    from pipelines.progress import ShowProgress

    interrupted = _note_interrupts()
    try:
        _check_report(args.report)
        job = make_job(args, settings, **_run_options(args))
        with ShowProgress() as progress:
            report = embed_corpus(job, progress)
        if args.report is not None:
            args.report.write_text(_page(report), encoding="utf-8")
    except (OMAiError, OSError, KeyboardInterrupt, SystemExit) as error:
        # SystemExit: of Ray's handler of SIGTERM, which takes ours away.
        if interrupted.is_set() or isinstance(error, KeyboardInterrupt | SystemExit):
            how = "without --overwrite " if args.overwrite else ""
            sys.stderr.write(f"interrupted: the same command {how}resumes where this one stopped\n")
            return INTERRUPTED
        sys.stderr.write(f"omai-ray: {worded(error)}\n")
        return 1
    sys.stdout.write((report.to_json() if args.json else report.to_text()) + "\n")
    if not report.ok:
        sys.stderr.write(
            f"omai-ray: {report.dead_fraction:.2%} of the rows or files are dead-lettered, above "
            f"--max-dead {report.max_dead:g}; the reasons are in {report.output}/_dead_letters. "
            "With a higher --max-dead the same command ends well, and embeds nothing again\n"
        )
    return 0 if report.ok else 1


def _note_interrupts() -> threading.Event:
    """Return what SIGINT and SIGTERM set: within Ray their exception may come out as another."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
    return interrupted


def worded(error: OMAiError | OSError) -> str:
    """Return an error as one line for people."""
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


def _page(report: Report) -> str:
    """Return the page of the last run that had work to do."""
    from omai_ray.storage import Location, ObjectNotFound
    from pipelines.report_page import render_page
    from pipelines.run_record import REPORT_PAGE

    page = Location.parse(report.output).child(REPORT_PAGE)
    if not report.units_done:
        with suppress(ObjectNotFound):
            return page.read_bytes().decode()
    return render_page(report)


def _check_report(path: Path | None) -> None:
    """Raise ConfigError before hours of work, not after them."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigError(f"--report {path}: no file can be written there")


def _run_options(args: argparse.Namespace) -> dict[str, Any]:
    actors, max_actors = args.actors
    return {
        "max_dead": args.max_dead,
        "actors": actors,
        "max_actors": max_actors,
        "leave_cpus": args.leave_cpus,
        "leave_gpus": args.leave_gpus,
        "cache": args.cache,
        "price_per_hour": args.price_per_hour,
        "address": join_ray(args.address),
        "overwrite": args.overwrite,
        "sink": None if args.sink is None else parse_target(args.sink),
    }


def make_job(args: argparse.Namespace, settings: Settings, **options: Any) -> EmbedJob:
    """Return the job of a command that has the corpus arguments. Raises ConfigError."""
    columns = None if args.columns is None else tuple(filter(None, args.columns.split(",")))
    model = choose_model(args.model, settings)
    return EmbedJob(
        source=args.source,
        output=args.output if "://" in args.output else Path(args.output),
        column=args.column,
        template=None if args.template is None else read_escapes(args.template),
        model=model,
        metrics_model=model_label(model.name, settings.catalog.models),
        columns=columns,
        on_long=args.on_long,
        chunking=Chunking(args.chunk_tokens, args.chunk_overlap, args.chunk_pool),
        row_id=args.row_id,
        dtype=args.dtype,
        **options,
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
    leave(main())
