"""How many tokens a run would embed, how long that takes, and what it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from omai_ray.catalog import ModelSpec, locate
from omai_ray.errors import ConfigError
from omai_ray.text.embedding_input import EmbeddingTokenizer
from pipelines.engine import Engine, TextEngine
from pipelines.job import EmbedJob
from pipelines.plan import Unit
from pipelines.preview import Preview
from pipelines.read import Slice, UnitReader
from pipelines.report import cost_per_million
from pipelines.rows import prepare

SAMPLED_UNITS = 16
MEASURE_S = 5.0


class TokenizerOnly:
    """What makes ids of a text, without the model that they are for.

    Raises CheckpointError or ConfigError where it cannot be loaded.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.tokenizer = EmbeddingTokenizer(locate(spec, weights=False), spec.context, spec.prompt)
        self.context = self.tokenizer.context

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's ids, never shortened."""
        return self.tokenizer.encode(texts)


@dataclass(frozen=True)
class _Part:
    """The first rows of a unit. ids: of those that have a text."""

    unit: Unit
    rows: int
    dead: int = 0
    truncated: int = 0
    ids: list[Sequence[int]] = field(default_factory=list)

    @property
    def tokens_per_row(self) -> float:
        """Rows that would be dead-lettered count too."""
        return sum(map(len, self.ids)) / self.rows


@dataclass(frozen=True)
class Sample:
    """Rows of some units, tokenised. ids: of each unit's. tokens_per_row: of all pending rows.

    margin: twice its standard error over the units, as a part of it; 0 where every row was looked
    at, None where one unit says nothing of the others.
    """

    rows: int
    dead: int
    truncated: int
    ids: list[list[Sequence[int]]]
    tokens_per_row: float
    margin: float | None


def sample(job: EmbedJob, found: Preview, engine: TextEngine) -> Sample:
    """Tokenise a slice of some of the pending units, the same ones every time.

    Raises ConfigError where the model cannot be given the job's chunks.
    """
    if job.chunks is not None:
        job.chunks.check_model(engine.context, engine.tokenizer.tokens_around)
    count = min(SAMPLED_UNITS, len(found.pending))
    units = [found.pending[at * len(found.pending) // count] for at in range(count)]
    parts = [part for unit in units if (part := _look(job, unit, engine)).rows]
    rows = sum(part.rows for part in parts)
    weight = sum(part.unit.rows for part in parts)
    mean = sum(p.tokens_per_row * p.unit.rows for p in parts) / weight if parts else 0.0
    return Sample(
        rows=rows,
        dead=sum(part.dead for part in parts),
        truncated=sum(part.truncated for part in parts),
        ids=[part.ids for part in parts if part.ids],
        tokens_per_row=mean,
        margin=0.0 if rows == found.pending_rows else _margin(parts, mean),
    )


def _look(job: EmbedJob, unit: Unit, engine: TextEngine) -> _Part:
    with UnitReader(unit, job.text.columns) as reader:
        first = next(reader.slices(), None)
    if first is None:
        return _Part(unit, 0)
    if not isinstance(first, Slice):
        return _Part(unit, first.rows or 0, first.rows or 0)
    prepared = prepare(first, job.text, engine, job.on_long, job.chunks)
    dead = sum(letter.rows or 0 for letter in prepared.dead)
    return _Part(unit, first.batch.num_rows, dead, prepared.truncated, prepared.ids)


def _margin(parts: Sequence[_Part], mean: float) -> float | None:
    if len(parts) < 2 or not mean:
        return None
    spread = statistics.stdev(part.tokens_per_row for part in parts)
    return float(2 * spread / len(parts) ** 0.5 / mean)


def measure(engine: Engine, found: Sample, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the tokens a second of an engine on a sample, after one pass that is not counted.

    Raises ConfigError where the sample has no text.
    """
    if not found.ids:
        raise ConfigError("--measure: no text was found to measure with")
    engine.embed_ids(found.ids[0])
    started, tokens = clock(), 0
    for ids in cycle(found.ids):
        engine.embed_ids(ids)
        tokens += sum(map(len, ids))
        if clock() - started >= MEASURE_S:
            break
    return tokens / (clock() - started)


@dataclass(frozen=True)
class Estimate:
    """What a run comes to. tokens_per_actor_s: None where no speed is known."""

    rows: int
    tokens_per_row: float
    actors: int
    tokens_per_actor_s: float | None
    price_per_hour: float | None

    @property
    def tokens(self) -> int:
        """All that a run would embed."""
        return round(self.rows * self.tokens_per_row)

    @property
    def run_s(self) -> float | None:
        """How long it runs once it has started."""
        speed = self.tokens_per_actor_s
        return self.tokens / (speed * self.actors) if speed else None

    @property
    def cost_per_million_tokens(self) -> float | None:
        """At the price of an actor's hour."""
        if self.price_per_hour is None or not self.tokens_per_actor_s:
            return None
        return cost_per_million(self.price_per_hour, self.tokens_per_actor_s)

    @property
    def cost(self) -> float | None:
        """Of the whole run."""
        each = self.cost_per_million_tokens
        return None if each is None else each * self.tokens / 1e6


def estimate(
    job: EmbedJob, found: Preview, sampled: Sample, tokens_per_actor_s: float | None
) -> Estimate:
    """Return what the pending units come to.

    tokens_per_actor_s, and the job's actors: those of the last run into the output where None.
    """
    return Estimate(
        rows=found.pending_rows,
        tokens_per_row=sampled.tokens_per_row,
        actors=job.actors or found.last_report.get("replicas_used") or 1,
        tokens_per_actor_s=tokens_per_actor_s or found.last_report.get("tokens_per_actor_s"),
        price_per_hour=job.price_per_hour,
    )
