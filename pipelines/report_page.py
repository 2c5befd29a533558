"""A report as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pipelines.charts import histogram, line_chart, stacked_bars
from pipelines.progress import clock
from pipelines.report import STAGES, Report

MOST_WORKERS = 64
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fff; --faint: #60646c; --line: #dfe2e6;
  --s0: #0a58ca; --s1: #c2410c; --s2: #15803d; --s3: #7c3aed; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181b; --faint: #a2a9b2;
  --line: #34393f; --s0: #6ea8fe; --s1: #fb923c; --s2: #4ade80; --s3: #c4a7ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p { color: var(--faint); margin: .2rem 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--faint); }
.grid { stroke: var(--line); } .line { fill: none; stroke: var(--s0); stroke-width: 1.8; }
.s0 { fill: var(--s0); color: var(--s0); } .s1 { fill: var(--s1); color: var(--s1); }
.s2 { fill: var(--s2); color: var(--s2); } .s3 { fill: var(--s3); color: var(--s3); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .6rem; }
dl div { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem; }
dt { color: var(--faint); font-size: .85rem; } dd { margin: 0; font-size: 1.15rem; }
""".strip()


def render_page(report: Report) -> str:
    """Return the page. Everything that comes from a corpus or a command line is escaped."""
    title = f"Bulk embedding: {report.output}"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(report.model)}, fingerprint {escape(report.fingerprint[:12])}. "
        "What follows is of this run; where it says so, of the whole output.</p>",
        _figures(report),
        *_plots(report),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _figures(report: Report) -> str:
    cost = report.cost_per_million_tokens
    figures = {
        "rows read": f"{report.rows_read:,}",
        "rows written": f"{report.rows_written:,}",
        "rows dead-lettered": f"{report.rows_dead:,}",
        "cut to the context": f"{report.rows_truncated:,}",
        "rows of the whole output": f"{report.total_rows_written:,} of {report.total_rows:,}",
        "unreadable files": f"{report.files_dead:,} of {report.files:,}",
        "tokens": f"{report.tokens:,}",
        "rows a second": f"{report.rows_per_s:,.1f}",
        "tokens a second": f"{report.tokens_per_s:,.0f}",
        "padding waste": f"{report.padding_waste:.1%}",
        "time to run": clock(report.run_s),
        "time to start": f"{report.startup_s:.1f} s",
        "replicas used": f"{len(report.workers):,} of up to {report.actors:,}",
        "cost of a million tokens": "no price was given" if cost is None else f"{cost:.4g}",
    }
    cells = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in figures.items()
    )
    return f"<dl>{''.join(cells)}</dl>"


def _plots(report: Report) -> Iterator[str]:
    rates = report.timeline.rates()
    end = clock(rates[-1][0]) if rates else ""
    yield from _section("Rows a second", line_chart([(at, rows) for at, rows, _ in rates], end))
    yield from _section("Tokens a second", line_chart([(at, t) for at, _, t in rates], end))
    yield from _section(
        "Texts by their length in tokens",
        histogram(_length_bins(report.lengths)),
        "As they were embedded: special tokens are counted, what was cut off is not.",
    )
    yield from _stages(report)
    if report.dead_reasons:
        rows = [(reason, (float(n),)) for reason, n in report.dead_reasons.items()]
        yield from _section("Dead-lettered rows of the whole output", stacked_bars(rows, ("",)))


def _stages(report: Report) -> Iterator[str]:
    names = [stage.removesuffix("_s") for stage in STAGES]
    workers = sorted(report.workers.items(), key=lambda item: item[1].started)
    bars = [
        (f"actor {number}, {times.units:,} units", [getattr(times, stage) for stage in STAGES])
        for number, (_, times) in enumerate(workers[:MOST_WORKERS], 1)
    ]
    keys = ", ".join(f'<b class="s{at}">{name}</b>' for at, name in enumerate(names))
    hidden = len(workers) - len(bars)
    more = f" The first {len(bars)} of {len(workers):,} actors." if hidden else ""
    yield "<h2>Seconds by stage of each actor</h2>"
    yield f"<p>{keys}. Texts are read and tokenised while others are embedded.{more}</p>"
    yield stacked_bars(bars, names)


def _section(heading: str, plot: str, note: str = "") -> Iterator[str]:
    yield f"<h2>{escape(heading)}</h2>"
    if note:
        yield f"<p>{escape(note)}</p>"
    yield plot


def _length_bins(lengths: list[int]) -> list[tuple[str, int]]:
    """Return the bins between the first and the last that hold a text, by name."""
    filled = [at for at, count in enumerate(lengths) if count]
    if not filled:
        return []
    return [(_bin_name(at), lengths[at]) for at in range(filled[0], filled[-1] + 1)]


def _bin_name(at: int) -> str:
    return "1" if at == 0 else f"{2**at:,}-{2 ** (at + 1) - 1:,}"
