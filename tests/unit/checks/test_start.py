"""What is wrong in a file of settings ends the start in one line, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from deployments.platform import Platform
from omai_ray.catalog import ModelSpec, Replicas
from omai_ray.cli import main
from omai_ray.errors import ConfigError
from omai_ray.settings import Settings

MODEL = "models: [{name: m, task: chat, source: %s%s}]\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "prot: 1\n",
            "prot: no such key (got 1); did you mean 'port'?",
        ),
        ("log_file: /nowhere/x.log\n", "log_file: /nowhere/x.log: No such file or directory"),
        (
            MODEL % ("/x", ", replicas: {min: 5, max: 4}"),
            "models.0.replicas: model 'm': min is 5, above max of 4: raise max to 5, or",
        ),
        (
            "database_url: postgresql://omai:hunter2@db/omai\n",
            "database_url: an address with its password stands in the file; set OMAI_DATABASE_URL",
        ),
        ("admin_password: hunter2\n", "admin_password: a secret stands in the file; set OMAI_ADM"),
        ("aliases: {a: b}\n", "aliases: 'a' points at 'b', which is not a served model"),
        (MODEL % ("./nowhere", ""), "models.0.source: model 'm': no directory ./nowhere"),
        (MODEL % ("PICKLED", ""), "models.0.source: "),
    ],
)
def test_a_start_that_cannot_be_names_file_key_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    """And never a secret."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    config = tmp_path / "platform.yaml"
    config.write_text(text.replace("PICKLED", str(pickled)))
    state = str(tmp_path / "state")
    assert main(["serve", "--port", "0", "--config", str(config), "--state-dir", state]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"omai-ray: {config}: {line}")
    assert told.count("\n") == 1
    assert "hunter2" not in told
    assert ("convert them" in told) == ("PICKLED" in text)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            {"num_gpus": 0.5},
            "num_gpus of all comes to 0.5, and this server has, since its start, 0: lower num_gpus",
        ),
        ({"num_cpus": 3, "replicas": Replicas(min=2, max=2)}, "num_cpus of all comes to 6.1, and"),
    ],
)
def test_models_that_the_machine_cannot_run_are_refused(
    monkeypatch: pytest.MonkeyPatch, model: dict[str, object], line: str
) -> None:
    """They would wait for ever for what is not here."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    spec = ModelSpec(name="m", task="chat", source="/x").model_copy(update=model)
    settings = Settings(models=(spec,))
    with pytest.raises(ConfigError, match=f"^platform.yaml: models: {line}"):
        Platform(settings, "platform.yaml: ")._check_resources(settings)
