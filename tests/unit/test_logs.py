from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.protocol import GenerationRequest
from omai_ray.engines.embedding.batcher import EmbeddingBatcher
from omai_ray.engines.embedding.engine import EmbeddingEngine
from omai_ray.errors import ServerError
from omai_ray.telemetry.logs import FIELDS, configure_logs, request_id_var
from tests.checkpoints import save_chat_checkpoint, save_embedding_checkpoint

CANARY = "canary-in-exception"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Return the file that this package logs to while the test runs."""
    names = ("omai_ray", "deployments", "pipelines")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    path = tmp_path / "omai.log"
    configure_logs("INFO", path)
    yield path
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return what was logged; every line must be an object."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_record_is_one_object_a_line(file: Path) -> None:
    """Newlines, quotes and separators in a message stay inside it."""
    log = logging.getLogger("omai_ray.test")
    texts = ["plain", 'a\nb\r\n"c"', "\u2028 ü 🙂", "\x00\x1b[31m"]
    for text in texts:
        log.info("%s", text)
    entries = lines(file)
    assert texts == [entry["message"] for entry in entries]
    assert entries[0].keys() == {"time", "level", "logger", "message", "request_id"}
    assert entries[0]["time"].endswith("+00:00")


def test_a_record_has_the_request_it_belongs_to_and_its_fields(file: Path) -> None:
    """Fields are keys of their own."""
    token = request_id_var.set("req_1")
    logging.getLogger("deployments.x").info("x", extra={FIELDS: {"status": 200, "model": None}})
    request_id_var.reset(token)
    (entry,) = lines(file)
    assert (entry["request_id"], entry["status"], entry["model"]) == ("req_1", 200, None)


def test_an_exceptions_text_is_never_written(file: Path) -> None:
    """Its type and where it passed are; causes and contexts are not quoted either."""
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(f"{CANARY} again") from error
    except ValueError:
        logging.getLogger("omai_ray.test").exception("it failed")
    text = file.read_text(encoding="utf-8")
    assert CANARY not in text
    (entry,) = lines(file)
    assert entry["exception"] == "ValueError"
    assert any("test_logs.py" in frame for frame in entry["trace"])


@pytest.mark.parametrize(
    "value", ["\ud800", 2**70, {5: "x"}, {"a": {1, 2}}, object(), float("nan")]
)
def test_a_field_that_json_lacks_does_not_lose_the_record(
    file: Path, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is it told on stderr, where its arguments would be shown."""
    logging.getLogger("omai_ray.test").warning("kept", extra={FIELDS: {"value": value}})
    (entry,) = lines(file)
    assert entry["message"] == "kept"
    assert capsys.readouterr().err == ""


def test_a_level_leaves_out_what_is_below_it(file: Path) -> None:
    """Configured by name."""
    log = logging.getLogger("pipelines.x")
    log.debug("no")
    log.warning("yes")
    assert ["yes"] == [entry["message"] for entry in lines(file)]


def test_a_file_that_was_moved_away_is_opened_again(file: Path) -> None:
    """So that it can be rotated."""
    log = logging.getLogger("omai_ray.test")
    log.info("one")
    file.rename(file.with_suffix(".1"))
    log.info("two")
    assert ["two"] == [entry["message"] for entry in lines(file)]


async def test_what_an_engines_thread_logs_has_the_requests_id(
    file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither thread runs in the request's context: the request takes it there."""
    checkpoint = save_chat_checkpoint(tmp_path_factory.mktemp("chat"))
    chat = BatchingEngine(ModelSpec(name="m", task="chat", source=str(checkpoint)))
    chat.start()
    monkeypatch.setattr(chat._runner, "run", failing)
    directory = save_embedding_checkpoint(tmp_path_factory.mktemp("embedding"))
    engine = EmbeddingEngine(ModelSpec(name="e", task="embedding", source=str(directory)))
    monkeypatch.setattr(engine, "embed_arrays", failing)
    request_id_var.set("req_of_chat")
    (output,) = [output async for output in chat.generate(GenerationRequest("r", [1, 2], 3))]
    assert output.finish == "error"
    request_id_var.set("req_of_embedding")
    with pytest.raises(ServerError):
        await EmbeddingBatcher(engine, max_queued=1).embed([[1, 2]])
    await chat.drain()
    logged = {line["message"]: line["request_id"] for line in lines(file)}
    assert logged["a request failed in a step of its own: RuntimeError"] == "req_of_chat"
    assert logged["a batch could not be embedded"] == "req_of_embedding"


def failing(*_: object) -> Any:
    """Fail as a step may."""
    raise RuntimeError(CANARY)


def test_a_file_that_cannot_be_made_again_ends_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What logs goes on, and stderr says why there is no line."""
    directory = tmp_path / "gone"
    directory.mkdir()
    configure_logs("INFO", directory / "x.log")
    directory.rmdir()
    logging.getLogger("omai_ray.test").info("on")
    assert "No such file" in capsys.readouterr().err
