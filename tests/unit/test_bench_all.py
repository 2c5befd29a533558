from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

from benchmarks import all as bench
from deployments.chat import ChatReplica
from deployments.embedding import EmbeddingReplica


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a directory with stand-ins of three benchmarks: one is well, two are not."""
    bodies = {
        "quota": "print('| a | table |'); print(json.dumps({'vs_a': 2.0, 'quick': sys.argv[1:]}))",
        "bulk": "print(json.dumps({'vs_a': 9.0})); sys.exit(3)",
        "chat": "print(json.dumps({'vs_a': 9.0})); print('done')",
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(f"import json, sys\n{body}\n", encoding="utf-8")
    return tmp_path


def test_the_last_line_of_each_benchmark_is_collected(
    programs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that fails, or whose last line is no JSON, is named, and gives no figures."""
    report = bench.run_all(["bulk", "quota", "chat"], True, programs)
    assert report == {
        "quick": True,
        "figures": {"quota": {"vs_a": 2.0, "quick": ["--quick"]}},
        "failed": {"bulk": "status 3", "chat": "its last line is no JSON object"},
    }
    shown = capfd.readouterr()
    assert "| a | table |" in shown.out
    assert "bulk: status 3" in shown.err


def test_a_whole_run_says_nothing_of_quick(programs: Path) -> None:
    """The programs get no option that was not asked for."""
    assert bench.run_all(["quota"], False, programs)["figures"]["quota"]["quick"] == []


def test_the_table_has_the_ratios_and_what_failed(tmp_path: Path) -> None:
    """Inner figures by their path; what compares nothing stays in the JSON."""
    report = {
        "date": "2026-11-28",
        "hardware": "amd-epyc-2vcpu",
        "only": [],
        "quick": False,
        "figures": {
            "autoscaling": {"day": {"gpu_hours_vs_optimum": 1.1101, "hours": 17.8}},
            "batch": {"online_ttft_ratio": 1.25, "vs_note": "none", "embeddings_vs_bulk": 1},
        },
        "failed": {"bulk": "status 3"},
    }
    figures, table = bench.write(report, tmp_path / "results")
    assert figures.name == "2026-11-28-amd-epyc-2vcpu.json"
    assert json.loads(figures.read_text()) == report
    assert table.name == "2026-11-28-amd-epyc-2vcpu.md"
    rows = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| autoscaling | `day.gpu_hours_vs_optimum` | 1.11 | low |",
        "| batch | `online_ttft_ratio` | 1.25 | low |",
        "| batch | `embeddings_vs_bulk` | 1 | high |",
        "| bulk | failed: status 3 | | |",
    ]


def test_a_failure_is_the_status_of_all(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Figures that are quick, or of some, are in files of their own: they replace no others."""
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    (tmp_path / "benchmarks").symlink_to(programs)
    given = ["--quick", "--hardware", "x", "--results", str(tmp_path / "results")]
    assert bench.main([*given, "--only", "quota"]) == 0
    assert bench.main([*given, "--only", "quota", "--only", "chat"]) == 1
    stems = {path.stem.partition("-x")[2] for path in (tmp_path / "results").iterdir()}
    assert {"-quota-quick", "-quota-chat-quick"} == stems


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AMD EPYC 9R14 96-Core Processor", "amd-epyc-9r14"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon"),
    ],
)
def test_hardware_is_named_for_files(model: str, name: str, tmp_path: Path) -> None:
    """Small letters, digits and dashes; trade marks and clock rates are left out."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: {model}\n", encoding="utf-8")
    found = bench.hardware(cpuinfo)
    assert found.startswith(f"{name}-")
    assert found.endswith("vcpu")


def test_every_benchmark_is_a_program_that_takes_quick() -> None:
    """The list has no name that is gone."""
    for name in bench.NAMES:
        source = (bench.ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        assert '"--quick"' in source


def test_the_gateways_stubs_take_what_replicas_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its figures would be of failures: the ingress calls them as it calls replicas."""
    monkeypatch.syspath_prepend(str(bench.ROOT / "benchmarks"))
    apps = importlib.import_module("gateway_apps")
    for stub, replica in ((apps.StubChat, ChatReplica), (apps.StubEmbedding, EmbeddingReplica)):
        for name in ("stream", "answer", "so_far", "embed", "ready"):
            if hasattr(replica, name):
                taken = inspect.signature(getattr(replica, name)).parameters
                assert list(inspect.signature(getattr(stub, name)).parameters) == list(taken)
