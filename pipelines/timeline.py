"""A run's totals over time, in few points however long it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

MOST_POINTS = 240
MOST_WINDOWS = 60
SHORTEST_WINDOW_S = 2.0


@dataclass
class Timeline:
    """Points (seconds since the run began, rows, tokens), oldest first, the newest always there.

    Where they become too many, every second one goes and later ones are kept twice as far apart.
    """

    points: list[tuple[float, int, int]] = field(default_factory=lambda: [(0.0, 0, 0)])
    gap_s: float = 0.5

    def add(self, at_s: float, rows: int, tokens: int) -> None:
        """Note new totals."""
        fresh = len(self.points) > 1 and self.points[-1][0] - self.points[-2][0] < self.gap_s
        if fresh:
            self.points.pop()
        self.points.append((at_s, rows, tokens))
        if len(self.points) > MOST_POINTS:
            self.points = [*self.points[:-1:2], self.points[-1]]
            self.gap_s *= 2

    def rates(self) -> list[tuple[float, float, float]]:
        """Return (seconds, rows a second, tokens a second), each of a window up to its seconds.

        Totals come a slice of many rows at a time, so a short window would show but that. They
        fall where a unit is begun anew; the rate is then 0.
        """
        window_s = max(SHORTEST_WINDOW_S, self.points[-1][0] / MOST_WINDOWS)
        edges = self.points[:1]
        for point in self.points[1:]:
            if point[0] - edges[-1][0] >= window_s:
                edges.append(point)
        if edges[-1] != self.points[-1]:
            edges[max(1, len(edges) - 1) :] = [self.points[-1]]  # no shorter one at the end
        return [
            (at_s, max(0, rows - before[1]) / took, max(0, tokens - before[2]) / took)
            for before, (at_s, rows, tokens) in pairwise(edges)
            if (took := at_s - before[0]) > 0
        ]
