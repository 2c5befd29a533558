"""The arithmetic of one bucket: a minute's capacity, refilled continuously.

All of it is in integers, so that rounding never admits anything: a balance is counted in parts of
which 60e9 make one unit, hence one nanosecond refills exactly `capacity` parts.
"""

from __future__ import annotations

from dataclasses import dataclass

_NS = 1_000_000_000
_PARTS = 60 * _NS


@dataclass(slots=True)
class Bucket:
    """A bucket as it was at `_at_ns`; made full by `full`.

    Its balance may be negative: a response that used more than it had reserved is paid back
    before the next one is admitted. Times are seconds of any one clock; a time before an earlier
    one counts as that earlier one, so no interval is ever refilled twice.
    """

    capacity: int
    _parts: int
    _at_ns: int

    @classmethod
    def full(cls, capacity: int, now_s: float) -> Bucket:
        """Return a bucket that holds a minute's worth."""
        return cls(capacity, capacity * _PARTS, round(now_s * _NS))

    def refill(self, now_s: float) -> None:
        """Bring the balance to `now_s`; the other methods speak of the time of the last refill."""
        now_ns = round(now_s * _NS)
        if now_ns > self._at_ns:
            refilled = self._parts + (now_ns - self._at_ns) * self.capacity
            self._parts = min(self.capacity * _PARTS, refilled)
            self._at_ns = now_ns

    def shift(self, seconds: float) -> None:
        """Move it in time: to a clock that reads so much more."""
        self._at_ns += round(seconds * _NS)

    def resize(self, capacity: int) -> None:
        """Change the capacity, as full as before in proportion (a tier was changed)."""
        if capacity != self.capacity:
            self._parts = self._parts * capacity // self.capacity
            self.capacity = capacity

    def take(self, units: int) -> None:
        """Take units, whether they are there or not: see `wait_s`."""
        self._parts -= units * _PARTS

    def give(self, units: int) -> None:
        """Return units that were taken; what does not fit is lost, as in any full bucket."""
        self._parts = min(self.capacity * _PARTS, self._parts + units * _PARTS)

    def has(self, units: int) -> bool:
        """Whether that many can be taken now."""
        return units * _PARTS <= self._parts

    def wait_s(self, units: int) -> float | None:
        """Return the seconds until that many can be taken, 0 for now, None for never."""
        if units > self.capacity:
            return None
        return self._seconds(units * _PARTS - self._parts)

    @property
    def remaining(self) -> int:
        """Whole units that can be taken, never negative."""
        return max(0, self._parts // _PARTS)

    @property
    def reset_s(self) -> float:
        """Seconds until it is full."""
        return self._seconds(self.capacity * _PARTS - self._parts)

    @property
    def is_full(self) -> bool:
        """Whether it is the same as a new one."""
        return self._parts >= self.capacity * _PARTS

    def _seconds(self, parts: int) -> float:
        """Return how long that many parts take, rounded up to the nanosecond."""
        return -(-max(0, parts) // self.capacity) / _NS
