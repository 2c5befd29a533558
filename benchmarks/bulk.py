"""Rows per second of a bulk job against what a user would otherwise run, its memory, its resume.

`python benchmarks/bulk.py [--quick]`: all-MiniLM-L6-v2 on this machine's CPUs, the same weights and
the same parquet corpus for everyone, one after the other in each round, medians of the rounds; the
last two peers, which take minutes, in the first round alone. All are timed from the first row's
start, when Ray and the model are ready, to the last file's end.

- `bare_engine`: the engine in a loop over texts in memory, no Ray and no IO
- `sentence_transformers`: pandas, `encode` with the library's defaults, `to_parquet`
- `plain_ray_data`: `map_batches` with sentence-transformers, an actor for each CPU, in bfloat16
  where the CPU has it, else in float32

A job is killed in the middle and resumed. 10 GB of text in row groups of a gigabyte pass through a
job whose engine takes no time: the memory is what the job itself holds. And an engine that sleeps
for its rows runs on one to three nodes of one CPU each: how the job scales where cores are not what
it waits for. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sampler import Sampler  # noqa: E402

from examples.sample_corpus import passages, write_corpus  # noqa: E402
from omai_ray.catalog import ModelSpec, locate  # noqa: E402
from omai_ray.text.windows import Window  # noqa: E402
from pipelines.embed_corpus import embed_corpus  # noqa: E402
from pipelines.engine import Engine  # noqa: E402
from pipelines.job import EmbedJob  # noqa: E402

SLOW_PEERS = ("sentence_transformers", "plain_ray_data")
PEERS = ("bare_engine", *SLOW_PEERS)
WAYS = Path(__file__).with_name("bulk_ways.py")
MODEL = "builtin:all-minilm-l6-v2"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
}
LETTERS = 1024  # of a generated row
SLEEP_S = 0.004  # for each row, of the engine that only sleeps


class InstantEngine:
    """Gives every row the same vector, after `sleep_s`; loads no model."""

    context, dimension = 256, 384
    tokens_around = 2
    unit_length = True
    int8_cosine = ""
    fingerprint = "0" * 64
    tokens = computed_tokens = 0

    def __init__(self, sleep_s: float = 0.0) -> None:
        self.provenance: dict[str, Any] = {}
        self._sleep_s = sleep_s

    @property
    def tokenizer(self) -> InstantEngine:
        """Its own."""
        return self

    def windows(self, texts: Sequence[str], size: int, overlap: int) -> list[list[Window]]:
        """Chunks are not measured."""
        raise NotImplementedError

    def shorten(self, ids: list[int]) -> list[int]:
        """Return them as they are."""
        return ids

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return three ids a text, as equal ones are computed once."""
        return [[1, zlib.crc32(text.encode()), 2] for text in texts]

    def embed_ids(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return float32 [N, 384]."""
        time.sleep(self._sleep_s * len(inputs))
        return np.full((len(inputs), self.dimension), 0.051, dtype=np.float32)


def instant(_: ModelSpec) -> Engine:
    """Return an engine that takes no time."""
    return InstantEngine()


def sleeping(_: ModelSpec) -> Engine:
    """Return an engine that waits for its rows, as for a device that works alone."""
    return InstantEngine(SLEEP_S)


def run_ours(source: Path, output: Path) -> dict[str, Any]:
    """Run the command; return its report."""
    done = subprocess.run(
        [*_command(source, output), "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _command(source: Path, output: Path) -> list[str]:
    module = [sys.executable, "-m", "pipelines.embed_corpus"]
    return [*module, str(source), str(output), "--column", "text", "--model", MODEL]


def run_peer(way: str, model: str, source: Path, output: Path) -> float:
    """Return a peer's rows per second."""
    done = subprocess.run(
        [sys.executable, str(WAYS), way, model, str(source), str(output)], env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    return float(said["rows"] / said["seconds"])


def measure_rates(
    source: Path, folder: Path, rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return everyone's rows per second, the median of the rounds, and our last report."""
    model = str(locate(ModelSpec(name="m", task="embedding", source=MODEL)))
    rates: dict[str, list[float]] = {}
    report: dict[str, Any] = {}

    def note(way: str, rate: float) -> None:
        rates.setdefault(way, []).append(rate)
        print(f"{way:24}{rate:10.1f} rows/s", flush=True)

    for number in range(rounds):
        report = run_ours(source, folder / f"ours-{number}")
        note("omai_ray", report["rows_per_s"])
        for way in PEERS if number == 0 else PEERS[:1]:
            note(way, run_peer(way, model, source, folder / f"{way}-{number}"))
    for way, found in rates.items():
        print(f"{way:24}{statistics.median(found):10.1f} rows/s, the median")
    ratios = {
        f"vs_{way}": statistics.median(
            ours / theirs for ours, theirs in zip(rates["omai_ray"], rates[way], strict=False)
        )
        for way in PEERS
    }
    medians = {f"{way}_rows_per_s": statistics.median(found) for way, found in rates.items()}
    return medians | ratios, report


def write_generated(folder: Path, gigabytes: float) -> int:
    """Write files of one row group of a gigabyte each; return the rows."""
    folder.mkdir()
    rows = int(1e9 / LETTERS)
    letters = np.random.default_rng(0).integers(97, 123, (1000, LETTERS), dtype=np.uint8)
    texts = [bytes(row).decode() for row in letters]
    slab = pa.table({"text": pa.array(texts).take(pa.array(np.arange(rows) % 1000))})
    first = folder / "part-0.parquet"
    # Without a dictionary, pages hold the text itself; it is the codec that makes the file small.
    pq.write_table(slab, first, row_group_size=rows, use_dictionary=False, compression="zstd")
    count = max(1, round(gigabytes))
    for number in range(1, count):
        shutil.copyfile(first, folder / f"part-{number}.parquet")
    return rows * count


class Watch(Sampler):
    """A context that samples the memory of this process and of the job's actors, in MiB."""

    def __init__(self) -> None:
        super().__init__(every_s=0.5)
        self.samples: list[float] = []

    def take(self) -> None:
        """Add a sample, once there are actors."""
        workers = [pid for pid in map(_pid, Path("/proc").iterdir()) if pid and _is_worker(pid)]
        if workers:
            self.samples.append(sum(map(_private_mib, [os.getpid(), *workers])))


def _pid(path: Path) -> int | None:
    return int(path.name) if path.name.isdecimal() else None


def _is_worker(pid: int) -> bool:
    try:
        return b"EmbedWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _private_mib(pid: int) -> float:
    """Return the memory that a process has to itself."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def measure_memory(folder: Path, gigabytes: float) -> dict[str, Any]:
    """Return what the job's processes hold while generated text passes through."""
    rows = write_generated(folder / "generated", gigabytes)
    job = EmbedJob(
        source=str(folder / "generated"),
        output=folder / "generated-out",
        column="text",
        columns=(),
        model=ModelSpec(name="instant", task="embedding", source="nowhere"),
        actors=2,
        engine_factory=instant,
    )
    with Watch() as watch:
        report = embed_corpus(job)
    assert report.rows_written == rows
    early = watch.samples[len(watch.samples) // 4 : len(watch.samples) // 2]
    late = watch.samples[3 * len(watch.samples) // 4 :]
    growth = statistics.median(late) / statistics.median(early)
    print(f"{rows:,} rows of {LETTERS} bytes: at most {max(watch.samples):,.0f} MiB in 3 processes")
    shutil.rmtree(folder / "generated-out")
    return {
        "generated_gb": rows * LETTERS / 1e9,
        "memory_above_model_mib": max(watch.samples),
        "memory_growth_of_second_half": growth,
    }


def measure_resume(source: Path, folder: Path) -> dict[str, Any]:
    """Kill the command where half is done; return what was done twice, in units of an actor."""
    output = folder / "resumed"
    running = subprocess.Popen(
        _command(source, output), env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    rows_done, rows_total = 0, 1
    assert running.stderr is not None
    for line in running.stderr:
        words = line.replace(",", "").split()
        if words[1:2] == ["of"] and words[3:4] == ["rows"]:
            rows_done, rows_total = int(words[0]), int(words[2])
            if rows_done > rows_total // 2:
                break
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    ledger = (output / "_run" / "ledger.jsonl").read_text().splitlines()
    committed = sum(json.loads(line)["rows"] for line in ledger)
    unit_rows = json.loads((output / "_run" / "manifest.json").read_text())["unit_rows"]
    time.sleep(3)  # actors without a driver end
    report = run_ours(source, output)
    assert report["total_rows_written"] == rows_total
    redone = max(0.0, (rows_done - committed) / unit_rows / report["actors"])
    print(
        f"killed after {rows_done:,} rows, {committed:,} committed; {report['rows_read']:,} resumed"
    )
    return {"resume_redone_units_per_actor": redone}


def measure_scaling(folder: Path, rows: int) -> dict[str, Any]:
    """Return rows per second of a sleeping engine on one, two, three nodes of one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    source = folder / "short"
    source.mkdir()
    texts = [f"some words, {number}" for number in range(rows)]
    pq.write_table(pa.table({"text": texts}), source / "a.parquet")
    rates = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for nodes in (1, 2, 3):
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            job = EmbedJob(
                source=str(source),
                output=folder / f"nodes-{nodes}",
                column="text",
                model=ModelSpec(name="sleeping", task="embedding", source="nowhere"),
                actors=nodes,
                unit_rows=max(50, rows // 36),
                address=cluster.address,
                engine_factory=sleeping,
            )
            rates.append(embed_corpus(job).rows_per_s)
            print(f"{nodes} nodes, sleeping engine: {rates[-1]:.1f} rows/s")
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {"scaling_per_added_cpu": min(rates[1] / rates[0] / 2, rates[2] / rates[0] / 3)}


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows, and one round")
    options = parser.parse_args()
    rows, rounds, gigabytes = (4_000, 1, 2.0) if options.quick else (20_000, 5, 10.0)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    figures: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        **{
            name: version(name)
            for name in ("ray", "torch", "transformers", "sentence-transformers")
        },
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = passages(rows)
        write_corpus(folder / "corpus", found)
        rates, report = measure_rates(folder / "corpus", folder, rounds)
        figures |= {"rows": len(found), "tokens": report["tokens"], **rates}
        figures |= measure_resume(folder / "corpus", folder)
        figures |= measure_memory(folder, gigabytes)
        figures |= measure_scaling(folder, 1500 if options.quick else 4500)
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
