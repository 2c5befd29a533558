"""`omai-ray batch`: submit batches to a server, look at them, fetch what they leave."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omai_ray.batches.lines import ENDPOINTS
from omai_ray.cli.common import Commands, add_json, check_limit, date, group, show
from omai_ray.cli.server import Server
from omai_ray.errors import ConfigError
from omai_ray.files.files import MAX_LIFE_S, MIN_LIFE_S

_TOGETHER = 100


def add(commands: Commands) -> None:
    """Add the commands."""
    batch = group(
        commands,
        "batch",
        "submit files of requests to a server (OMAI_BASE_URL, OMAI_API_KEY), fetch the answers",
    )
    submit = batch.add_parser(
        "submit",
        help="upload a JSONL file of requests, and run it",
        description="Upload FILE, and have its requests answered. Each of its lines is JSON: "
        'custom_id, method ("POST"), url (as --endpoint) and body. Prints the batch\'s ID.',
    )
    submit.set_defaults(run=_submit)
    submit.add_argument("file", type=Path, metavar="FILE")
    submit.add_argument("--endpoint", required=True, choices=ENDPOINTS)
    submit.add_argument("--metadata", action="append", default=[], type=_pair, metavar="KEY=VALUE",
        help="kept with the batch; may be repeated")  # fmt: skip
    submit.add_argument("--keep-results", type=int, metavar="SECONDS",
        help="keep the files with the answers for so long, "
        f"{MIN_LIFE_S:,} to {MAX_LIFE_S:,} (default: for ever)")  # fmt: skip
    listing = batch.add_parser("list", help="list batches, the newest first")
    listing.set_defaults(run=_list)
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="at most (default: 20)")
    add_json(listing)
    status = batch.add_parser("status", help="show a batch, and what is wrong with its input")
    status.set_defaults(run=_status)
    add_json(status)
    cancel = batch.add_parser("cancel", help="end a batch; what is answered is kept")
    cancel.set_defaults(run=_cancel)
    results = batch.add_parser("results", help="write a batch's answers, and its errors")
    results.set_defaults(run=_results)
    results.add_argument("-o", "--output", type=Path, metavar="FILE",
        help="instead of the standard output")  # fmt: skip
    results.add_argument("--errors", action="store_true", help="the requests that failed, alone")
    for parser in (status, cancel, results):
        parser.add_argument("batch", metavar="ID", help="as submit printed it, and list shows")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got '{text}'")
    return key, value


def _submit(args: argparse.Namespace) -> int:
    kept_s = args.keep_results
    if kept_s is not None and not MIN_LIFE_S <= kept_s <= MAX_LIFE_S:
        limits = f"{MIN_LIFE_S} to {MAX_LIFE_S} seconds"
        raise ConfigError(f"--keep-results: expected {limits}, got {kept_s}")
    server = Server()
    file = server.upload(args.file, "batch")
    body: dict[str, Any] = {
        "input_file_id": file["id"],
        "endpoint": args.endpoint,
        "completion_window": "24h",
    }
    if args.metadata:
        body["metadata"] = dict(args.metadata)
    if kept_s is not None:
        body["output_expires_after"] = {"anchor": "created_at", "seconds": kept_s}
    print(server.post("/batches", body)["id"])
    return 0


def _list(args: argparse.Namespace) -> int:
    check_limit(args)
    server, after = Server(), None
    found: list[dict[str, Any]] = []
    while len(found) < args.limit:
        wanted = min(_TOGETHER, args.limit - len(found))
        page = server.get("/batches", limit=wanted, after=after)
        found += page["data"]
        if not page["has_more"]:
            break
        after = page["last_id"]
    show([_row(batch) for batch in found], args.json)
    return 0


def _status(args: argparse.Namespace) -> int:
    batch = Server().get(f"/batches/{_id(args.batch)}")
    if args.json:
        print(json.dumps(batch, indent=2))
        return 0
    show([_row(batch)], as_json=False)
    for error in (batch["errors"] or {"data": []})["data"]:
        line = "" if error["line"] is None else f"line {error['line']}: "
        print(f"{line}{error['message']} ({error['code']})")
    return 0


def _cancel(args: argparse.Namespace) -> int:
    print(Server().post(f"/batches/{_id(args.batch)}/cancel")["status"])
    return 0


def _results(args: argparse.Namespace) -> int:
    """Write the files; the status is 1 where the batch has not ended, or has none."""
    server = Server()
    batch = server.get(f"/batches/{_id(args.batch)}")
    if batch["status"] not in ("completed", "failed", "expired", "cancelled"):
        raise ConfigError(f"{batch['id']} is {batch['status']}: its results are not there yet")
    kinds = ("error",) if args.errors else ("output", "error")
    files = [file for kind in kinds if (file := batch[f"{kind}_file_id"])]
    if not files and not args.errors:
        raise ConfigError(
            f"{batch['id']} is {batch['status']} and has no results: "
            f"`omai-ray batch status {batch['id']}` says why"
        )
    contents = (data for file in files for data in server.content(file))
    if args.output is not None:
        _write_whole(args.output, contents)
        return 0
    for data in contents:
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


def _write_whole(path: Path, contents: Iterable[bytes]) -> None:
    """Write a file that is there when all of it is; a device or pipe is written to as it is.

    Raises ConfigError.
    """
    target = path.resolve()
    special = target.exists() and not target.is_file()
    name = f".{target.name}.{secrets.token_hex(4)}.tmp"
    written = target if special else target.with_name(name)
    try:
        with written.open("wb") as stream:
            for data in contents:
                stream.write(data)
        if not special:
            written.replace(target)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    finally:
        if not special:
            written.unlink(missing_ok=True)


def _id(text: str) -> str:
    """Return an id that can stand in a path."""
    if not text.replace("_", "").isalnum() or not text.isascii():
        raise ConfigError(f"'{text}' is no batch's id")
    return text


def _row(batch: dict[str, Any]) -> dict[str, Any]:
    counts = batch["request_counts"]
    return {
        "id": batch["id"],
        "status": batch["status"],
        "endpoint": batch["endpoint"],
        "model": batch["model"],
        "requests": counts["total"],
        "completed": counts["completed"],
        "failed": counts["failed"],
        "created": date(batch["created_at"]),
        "expires": date(batch["expires_at"]),
    }
