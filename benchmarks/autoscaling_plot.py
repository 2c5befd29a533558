"""Load, replicas and optimum over time, as an SVG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_WIDTH, _HEIGHT, _GAP, _LEFT = 860, 170, 46, 44
_POINTS_S = 10


@dataclass(frozen=True)
class Chart:
    """One load, in full replicas, with the replicas asked for and the optimum's, by the second."""

    name: str
    load: list[float]
    replicas: list[int]
    optimum: list[int]


def write_plot(path: Path, charts: list[Chart]) -> None:
    """Write the charts below each other."""
    height = 40 + len(charts) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="44" y="22"><tspan fill="#999">load, in full replicas</tspan>'
        '<tspan dx="20" fill="#0a58ca">replicas asked for</tspan>'
        '<tspan dx="20" fill="#c2410c">optimum, knowing the load</tspan></text>',
    ]
    for number, chart in enumerate(charts):
        parts += _draw(chart, 40 + number * (_HEIGHT + _GAP))
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _draw(chart: Chart, top: int) -> list[str]:
    seconds = len(chart.load)
    load = [
        sum(chart.load[at : at + _POINTS_S]) / len(chart.load[at : at + _POINTS_S])
        for at in range(0, seconds, _POINTS_S)
    ]
    most = max(*load, *chart.replicas, *chart.optimum) * 1.05

    def line(values: list[float], colour: str) -> str:
        step = _WIDTH / len(values)
        points = " ".join(
            f"{_LEFT + at * step:.1f},{top + _HEIGHT * (1 - value / most):.1f}"
            for at, value in enumerate(values)
        )
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>'

    bottom = top + _HEIGHT
    ticks = [round(most * part / 4) for part in range(5)]
    return [
        f'<text x="{_LEFT}" y="{top - 4}" font-weight="bold">{chart.name}</text>',
        *(
            f'<text x="{_LEFT - 6}" y="{top + _HEIGHT * (1 - tick / most) + 4:.1f}" '
            f'text-anchor="end" fill="#555">{tick}</text>'
            for tick in ticks
        ),
        f'<path d="M{_LEFT},{top}V{bottom}H{_LEFT + _WIDTH}" fill="none" stroke="#555"/>',
        f'<text x="{_LEFT + _WIDTH}" y="{bottom + 15}" text-anchor="end" fill="#555">'
        f"{seconds // 60} min</text>",
        line(load, "#999"),
        line([float(n) for n in chart.optimum[::_POINTS_S]], "#c2410c"),
        line([float(n) for n in chart.replicas[::_POINTS_S]], "#0a58ca"),
    ]
