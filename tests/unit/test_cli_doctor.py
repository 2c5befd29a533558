from __future__ import annotations

import builtins
import json
import re
import shutil
import socket
import sqlite3
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from omai_ray.catalog import ModelSpec, Replicas
from omai_ray.cli import diagnosis, main
from omai_ray.cli.diagnosis import Finding
from omai_ray.engines import device
from tests.checkpoints import save_embedding_checkpoint
from tests.programs import free_port
from tests.redis_server import run_redis

Usage = namedtuple("Usage", "total used free")
CHAT = ModelSpec(name="c", task="chat", source="builtin:omai-chat-small")


def diagnosed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the command's status, and what it found by the checks' names."""
    status = main(["doctor", "--json", *arguments])
    return status, {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of settings with which all is well: a free port, one small model."""
    for name in ("OMAI_CONFIG", "OMAI_STATE_DIR", "OMAI_DATABASE_URL", "OMAI_PORT", "OMAI_HOST"):
        monkeypatch.delenv(name, raising=False)
    state_dir = tmp_path / "state"
    state_dir.mkdir(mode=0o700)
    path = tmp_path / "platform.yaml"
    path.write_text(
        f"state_dir: {state_dir}\nport: {free_port()}\n"
        "models: [{name: c, task: chat, source: 'builtin:omai-chat-small'}]\n"
    )
    return path


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have room on every disk, whatever this machine has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 << 30, 50 << 30, 50 << 30))


def fails(finding: Finding, found: str, remedy: str) -> None:
    """Assert that a check failed, and what it says."""
    assert finding.status == "failed"
    assert found in finding.found
    assert remedy in (finding.remedy or "")


@pytest.mark.usefixtures("roomy")
def test_a_machine_that_can_serve_passes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0, a line for each check, and nothing is made."""
    assert main(["doctor", "--config", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" 0 failed")
    assert any(line.startswith("ok      database: SQLite, empty") for line in lines)
    assert list((config.parent / "state").iterdir()) == []


@pytest.mark.usefixtures("roomy")
def test_a_check_that_fails_gives_status_1_and_a_remedy(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever listens on the port is to end, or another port to be taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config.write_text(re.sub(r"(?m)^port: .*$", f"port: {port}", config.read_text()))
        status, found = diagnosed(capsys, "--config", str(config))
        main(["doctor", "--config", str(config)])
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port}" in found["port"]["found"]
    assert "--port" in found["port"]["remedy"]
    assert [c for c, finding in found.items() if finding["status"] == "failed"] == ["port"]
    assert "  -> end what listens there" in capsys.readouterr().out


def test_settings_that_cannot_be_read_fail(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What needs no settings is checked all the same."""
    config.write_text("prot: 1\n")
    status, found = diagnosed(capsys, "--config", str(config))
    assert status == 1
    assert "prot: no such key" in found["settings"]["found"]
    assert found["torch"]["status"] == "ok"
    assert "port" not in found


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package says which it requires."""
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    fails(diagnosis.check_python(), "3.10.4", "install Python >=3.11")


def test_packages_out_of_range_or_missing_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras that are not there, and tools of the repository's own, are no failure."""
    versions = {"ray": "2.10.0", "pydantic": "2.12.1", "redis": "5.0", "ruff": "0.1"}
    monkeypatch.setattr(diagnosis, "_installed", versions.get)
    ranges = [
        *("ray[default,data]>=2.60,<3", "pydantic>=2.12,<3", "rich>=14"),
        *(
            'redis>=6; extra == "redis"',
            'vllm>=0.30; extra == "vllm"',
            'ruff>=0.17; extra == "dev"',
        ),
    ]
    monkeypatch.setattr(diagnosis, "requires", lambda _: ranges)
    ray, rich, redis, rest = diagnosis.check_packages()
    fails(ray, "2.10.0", "pip install 'ray[data,default]<3,>=2.60'")
    fails(rich, "not installed", "pip install 'rich>=14'")
    fails(redis, "5.0", "pip install 'redis>=6'")
    fails(rest, "1 within the ranges of pyproject.toml, 3 not", "named above")
    versions |= {"ray": "2.60.0", "rich": "14.0", "redis": "6.0"}
    assert {"ok"} == {finding.status for finding in diagnosis.check_packages()}


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("error", [ImportError("No module named 'fastapi'"), OSError("libcuda")])
def test_what_a_missing_package_keeps_from_being_checked_fails(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """With the cause, and without a traceback; the rest is checked."""
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "deployments.platform":
            raise error
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    status, found = diagnosed(capsys, "--config", str(config))
    assert status == 1
    assert ["port", "model c"] == [c for c, f in found.items() if f["status"] == "failed"]
    for check in ("port", "model c"):
        assert found[check]["found"] == f"not checked: {error}"


def test_only_a_port_in_use_has_a_listener_to_end() -> None:
    """Else the operating system's own words say what is wrong."""
    finding = diagnosis.check_port("192.0.2.1", 0)
    fails(finding, "Cannot assign requested address", "another `host`")
    assert "end what listens" not in (finding.remedy or "")


@pytest.mark.usefixtures("roomy")
def test_the_disk_of_ray_is_where_serve_has_its_directory(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever RAY_TMPDIR says, which it does not heed."""
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, found = diagnosed(capsys, "--config", str(config))
    assert f"free at {tmp_path}," in found["disk of Ray"]["found"]


@pytest.mark.usefixtures("roomy")
def test_a_broken_torch_fails_and_the_rest_is_checked(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CPU and GPU alone need it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    status, found = diagnosed(capsys, "--config", str(config))
    assert status == 1
    assert found["torch"]["status"] == "failed"
    assert not {"cpu", "gpu"} & set(found)
    assert found["database"]["status"] == "ok"


def test_a_missing_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models run without it, more slowly."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = diagnosis.check_compiler()
    assert finding.status == "warning"
    assert "no no-such-compiler" in finding.found


def test_int8_without_vnni_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is named; the same without int8 passes."""
    monkeypatch.setattr(device, "has_int8", lambda: False)
    spec = ModelSpec(name="e", task="embedding", source="x", dtype="int8")
    fails(diagnosis.check_cpu([spec]), "dtype int8 of e needs VNNI", "dtype: auto")
    assert diagnosis.check_cpu([CHAT]).status == "ok"


def test_more_cpus_than_there_are_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would serve, slowly."""
    monkeypatch.setattr("omai_ray.cli.diagnosis.usable_cpus", lambda: 2)
    found = diagnosis.check_cpu([CHAT.model_copy(update={"num_cpus": 64}), CHAT])
    assert (found.status, "num_cpus is more for c (64)" in found.found) == ("warning", True)


def test_a_missing_gpu_fails_where_a_model_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without CUDA has another remedy than one that sees no GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    wanting = CHAT.model_copy(update={"num_gpus": 1.0})
    monkeypatch.setattr("torch.version.cuda", None)
    fails(diagnosis.check_gpu([wanting]), "above 0 for c", "a torch with CUDA")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    fails(diagnosis.check_gpu([wanting]), "above 0 for c", "nvidia-smi")
    assert diagnosis.check_gpu([CHAT]).status == "ok"


def test_models_that_want_more_gpus_than_there_are_do_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that no card is enough for fails; replicas that wait for another's are a warning."""
    card = SimpleNamespace(name="H100", total_memory=80 << 30)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: card)

    def wanting(num_gpus: float, least: int) -> ModelSpec:
        replicas = Replicas(min=least, max=4)
        return CHAT.model_copy(update={"num_gpus": num_gpus, "replicas": replicas})

    fails(diagnosis.check_gpu([wanting(4, 0)]), "num_gpus is more than 2 for c (4)", "lower")
    many = diagnosis.check_gpu([wanting(1, 2), wanting(0.5, 1)])
    assert many.status == "warning"
    assert "num_gpus times replicas.min is, for all models, 2.5" in many.found
    assert diagnosis.check_gpu([wanting(0.5, 4), CHAT]).status == "ok"


def test_a_state_directory_that_cannot_be_used_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place, or one that may not be written; one that others can read is told."""
    file = tmp_path / "file"
    file.touch()
    fails(diagnosis.check_state_dir(file / "state"), "is no directory", "--state-dir")
    assert diagnosis.check_state_dir(tmp_path / "new").status == "ok"
    tmp_path.chmod(0o755)
    finding = diagnosis.check_state_dir(tmp_path)
    assert (finding.status, finding.remedy) == ("warning", f"chmod 700 {tmp_path}")
    monkeypatch.setattr("os.access", lambda *_: False)
    fails(diagnosis.check_state_dir(tmp_path), "cannot be written", "chown")


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond Ray's threshold; little room is a warning."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 << 30, 96 << 30, 4 << 30))
    fails(diagnosis.check_disk("disk", tmp_path), "96% full", "above 95%")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 << 30, 9 << 30, 1 << 30))
    assert diagnosis.check_disk("disk", tmp_path).status == "warning"


def test_a_database_that_is_away_or_old_fails(tmp_path: Path) -> None:
    """Without the password in its URL; an older schema is to be upgraded."""
    away = diagnosis.check_database(f"postgresql://omai:secret@127.0.0.1:{free_port()}/omai")
    fails(away, "PostgreSQL", "OMAI_DATABASE_URL")
    assert "secret" not in away.found
    wrong = diagnosis.check_database("mysql://omai:secret@127.0.0.1/omai")
    fails(wrong, "database_url", "correct database_url")
    assert "secret" not in wrong.found
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('0001')")
    database.close()
    old = diagnosis.check_database(f"sqlite:///{path}")
    fails(old, "SQLite has schema 0001", "omai-ray db upgrade")


def test_a_redis_that_is_away_fails() -> None:
    """Without the password in its URL."""
    away = diagnosis.check_redis(f"redis://:secret@127.0.0.1:{free_port()}/0")
    fails(away, "does not answer", "OMAI_REDIS_URL")
    assert "secret" not in f"{away}"
    with run_redis() as url:
        assert diagnosis.check_redis(url) == Finding("redis", "ok", "answers")


def test_redis_without_its_library_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "redis", None)
    fails(diagnosis.check_redis("redis://127.0.0.1"), "redis-py", "omai-ray[redis]")


def test_a_model_whose_files_cannot_be_read_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whose tokenizer needs a package that is missing."""
    for error, found in (
        (PermissionError(13, "Permission denied"), "cannot be read: [Errno 13]"),
        (ImportError("No module named 'tokenizers'"), "not checked: No module named"),
    ):

        def raises(spec: ModelSpec, *, fetch: bool, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("deployments.platform.check_model", raises)
        fails(diagnosis.check_model(CHAT), found, "")


def test_models_without_their_files_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that lacks weights fails; a model of the hub is fetched at the first start."""
    checkpoint = save_embedding_checkpoint(tmp_path / "model")
    spec = ModelSpec(name="e", task="embedding", source=str(checkpoint))
    assert diagnosis.check_model(spec).status == "ok"
    for weights in checkpoint.rglob("*.safetensors"):
        weights.unlink()
    fails(diagnosis.check_model(spec), "safetensors", "its files")
    nowhere = spec.model_copy(update={"source": "./nowhere"})
    fails(diagnosis.check_model(nowhere), "no directory ./nowhere", "models")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    remote = diagnosis.check_model(spec.model_copy(update={"source": "nobody/nothing"}))
    assert remote.status == "warning"
    assert "hf download nobody/nothing" in (remote.remedy or "")
