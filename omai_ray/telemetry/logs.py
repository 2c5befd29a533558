"""JSON logs: one object a line, the request id in each, never a secret or a prompt."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import orjson

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object.

    An exception is written as its type and the places it passed, without its text: an exception's
    text may quote what a client sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id_var.get(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            entry["exception"] = record.exc_info[0].__name__
            entry["trace"] = [f"{f.filename}:{f.lineno} {f.name}" for f in frames[-12:]]
        try:
            return orjson.dumps(entry, default=str).decode()
        except TypeError:  # a lone surrogate, an integer above 64 bits, a key that is no text
            return json.dumps(entry, default=str)


class _LogFile(WatchedFileHandler):
    """Ends nothing where the file, moved away, cannot be made again: stderr has why."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


def configure_logs(level: str, file: Path | str | None = None) -> None:
    """Write this package's logs as JSON lines to a file, or to stderr; the last call counts.

    The file may be rotated by moving it away: it is opened again under its name.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        handler = _LogFile(file, encoding="utf-8", delay=True)
    handler.setFormatter(JsonFormatter())
    for name in ("omai_ray", "deployments", "pipelines"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
