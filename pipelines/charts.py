"""Plots as SVG, inline in a page whose style sheet gives the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 180, 64, 24, 10
_BAR, _NAME_WIDTH = 26, 150
_TICKS = 4
_LEAST = 1e-9  # what is smaller is nothing, on an axis


def line_chart(points: Sequence[tuple[float, float]], across: str) -> str:
    """Plot (x, y) from zero on; across: what is written at the end of the x axis."""
    most_x = max((x for x, _ in points), default=0.0) or 1.0
    most_y = _round_up(max((y for _, y in points), default=0.0))
    drawn = " ".join(
        f"{_LEFT + _WIDTH * x / most_x:.1f},{_TOP + _HEIGHT * (1 - y / most_y):.1f}"
        for x, y in points
    )
    return _svg(
        _TOP + _HEIGHT + _BOTTOM,
        *_y_axis(most_y),
        f'<polyline points="{drawn}" class="line"/>',
        _text(_LEFT, _TOP + _HEIGHT + 18, "0"),
        _text(_LEFT + _WIDTH, _TOP + _HEIGHT + 18, across, "end"),
    )


def histogram(bins: Sequence[tuple[str, int]]) -> str:
    """Plot counts side by side, each with its name below."""
    most = _round_up(max((count for _, count in bins), default=0))
    step = _WIDTH / max(1, len(bins))
    parts = _y_axis(most)
    for at, (name, count) in enumerate(bins):
        x, height = _LEFT + at * step, _HEIGHT * count / most
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{_TOP + _HEIGHT - height:.1f}" width="{step - 2:.1f}" '
            f'height="{height:.1f}" class="s0">{_hint(f"{name}: {count:,}")}</rect>'
        )
        parts.append(_text(x + step / 2, _TOP + _HEIGHT + 18, name, "middle"))
    return _svg(_TOP + _HEIGHT + _BOTTOM, *parts)


def stacked_bars(rows: Sequence[tuple[str, Sequence[float]]], series: Sequence[str]) -> str:
    """Plot a bar for each row, its parts end to end in the colours of the series."""
    most = max((sum(values) for _, values in rows), default=0.0) or 1.0
    width = _LEFT + _WIDTH - _NAME_WIDTH - 90
    parts = []
    for at, (name, values) in enumerate(rows):
        x, y = float(_NAME_WIDTH), _TOP + at * _BAR
        parts.append(_text(_NAME_WIDTH - 8, y + 15, name, "end"))
        for number, value in enumerate(values):
            long = width * value / most
            hint = _hint(f"{series[number]}: {value:,.5g}" if series[number] else f"{value:,}")
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{long:.1f}" height="{_BAR - 6}" '
                f'class="s{number}">{hint}</rect>'
            )
            x += long
        parts.append(_text(x + 6, y + 15, _number(sum(values))))
    return _svg(_TOP + len(rows) * _BAR + 6, *parts)


def _round_up(most: float) -> float:
    """Return the end of an axis whose quarters are round numbers."""
    if most < _LEAST:
        return 1.0
    power: float = 10 ** math.floor(math.log10(most))
    # A logarithm that was rounded can be one too small.
    return next(power * step for step in (1, 2, 4, 6, 8, 10, 20) if most <= power * step)


def _y_axis(most: float) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        y = _TOP + _HEIGHT * (1 - tick / _TICKS)
        parts.append(f'<path d="M{_LEFT},{y:.1f}h{_WIDTH}" class="grid"/>')
        parts.append(_text(_LEFT - 8, y + 4, _number(most * tick / _TICKS), "end"))
    return parts


def _number(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g} {unit}"
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _svg(height: int, *parts: str) -> str:
    width = _LEFT + _WIDTH + 16
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
