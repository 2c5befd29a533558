"""One thing that is wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """Where something is wrong, what, and the remedy; a line each."""

    place: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """Return `FILE: KEY: problem; remedy`."""
        problem = " ".join(self.problem.split())
        return f"{self.place}: {problem}; {self.remedy}" if self.remedy else (
            f"{self.place}: {problem}"
        )  # fmt: skip


@dataclass
class Findings:
    """What was found so far."""

    items: list[Finding] = field(default_factory=list)

    def add(self, place: str, problem: str, remedy: str = "") -> None:
        """Note one."""
        self.items.append(Finding(place, problem, remedy))
