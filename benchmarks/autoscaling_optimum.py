"""The fewest replica-hours that meet the latency target, by one who knows the trace.

A lower bound. Requests are a fluid that any number of replicas share without loss; a replica does
full throughput whenever there is work, and ends at once. Replicas that are added are paid for from
`startup_s` before they serve. Work is late where it surely is: it came in one step, and at the end
of the next, `wait_s` later, it is not among what replicas can have in their batches. Dynamic
programming over (replicas, backlog) finds the least of hours + price * late work. By weak duality,
at any price, this less the price of the late work that is allowed is a lower bound of the hours of
every plan that keeps the target; the best price is searched for. Between the backlogs of its grid
the programme interpolates, which makes the bound approximate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.autoscaling_simulator import Model, Request

_PARTS = 2  # of what a replica does in a step, in the backlog's grid
_SEARCHES = 5
_GOLDEN = (5**0.5 - 1) / 2
_PRICES = -5.0, 4.0  # log2 of replica-steps for a step's work
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Optimum:
    """The bound, and replicas by the step of the plan at the best price."""

    replica_hours: float
    replicas: list[int]
    step_s: float


def optimum(
    requests: list[Request],
    model: Model,
    *,
    seconds: int,
    wait_s: float,
    late: float,
    initial: int,
) -> Optimum:
    """Return the bound for a share `late` of the work that may begin after wait_s."""
    steps = int(seconds / wait_s)
    work = np.zeros(steps)
    for request in requests:
        work[min(int(request.at_s / wait_s), steps - 1)] += request.tokens
    full_step = model.full_tokens_per_s * wait_s
    arrivals = work / full_step  # in what one replica does in a step
    in_batch = model.batch * model.tokens / full_step
    most = max(int(np.ceil(arrivals.max() * 1.5)), initial) + 1
    allowed = late * arrivals.sum()
    plan = _Plan(arrivals, in_batch, model.startup_s / wait_s, most)

    def bound(doublings: float) -> float:
        """Return the bound in replica-steps at a price of 2 ** doublings for late work."""
        return plan.cost(2**doublings, initial) - 2**doublings * allowed

    low, high = _PRICES
    inner = [high - (high - low) * _GOLDEN, low + (high - low) * _GOLDEN]
    values = [bound(price) for price in inner]
    for _ in range(_SEARCHES):
        if values[0] >= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - (high - low) * _GOLDEN
            values[0] = bound(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + (high - low) * _GOLDEN
            values[1] = bound(inner[1])
    best = 0 if values[0] >= values[1] else 1
    replicas = plan.replicas(2 ** inner[best], initial)
    return Optimum(values[best] * wait_s / 3600, replicas, wait_s)


class _Plan:
    """The dynamic programme. Work is in what a full replica does in a step."""

    def __init__(
        self, arrivals: npt.NDArray[np.float64], in_batch: float, startup: float, most: int
    ) -> None:
        self._arrivals = arrivals.astype(np.float32)
        levels = int((most * in_batch + 2 * arrivals.max()) * _PARTS) + 1
        self._replicas = np.arange(most + 1, dtype=np.float32)[:, None]
        self._backlogs = np.arange(levels, dtype=np.float32)[None, :] / _PARTS
        self._in_batches = self._replicas * np.float32(in_batch)
        self._starts = self._replicas * np.float32(startup)

    def cost(self, price: float, initial: int) -> float:
        """Return the least of replica-steps + price * late work."""
        value = self._end()
        for step in range(len(self._arrivals) - 1, -1, -1):
            value = self._switch(self._before(step, value, price))
        return float(value[initial, 0])

    def replicas(self, price: float, initial: int) -> list[int]:
        """Return the replicas of each step at that price."""
        values = [self._end()]
        for step in range(len(self._arrivals) - 1, -1, -1):
            values.append(self._before(step, self._switch(values[-1]), price))
        now, level, plan = initial, 0, []
        starts = self._starts[:, 0]
        for step in range(len(self._arrivals)):
            value = values.pop()[:, level]
            now = int(np.argmin(value + np.maximum(starts - starts[now], 0)))
            left = float(self._serve(step)[0][now, level])
            level = min(round(left * _PARTS), self._backlogs.size - 1)
            plan.append(now)
        return plan

    def _end(self) -> Array:
        """Return the cost after the last step: what is left has to be done."""
        return np.repeat(self._backlogs, self._replicas.size, axis=0)

    def _before(self, step: int, value: Array, price: float) -> Array:
        """Return the cost from a step on, by the replicas in it and the backlog before it."""
        left, late = self._serve(step)
        cut = np.minimum(left, self._backlogs[0, -1])
        level = (cut * _PARTS).astype(np.intp)
        part = cut * _PARTS - level
        after = (1 - part) * np.take_along_axis(value, level, axis=1)
        above = np.minimum(level + 1, self._backlogs.size - 1)
        after += part * np.take_along_axis(value, above, axis=1)
        # What is beyond the grid is done by replicas that would not be there without it.
        result: Array = after + (left - cut) + self._replicas + np.float32(price) * late
        return result

    def _serve(self, step: int) -> tuple[Array, Array]:
        """Return the backlog after a step, and what became late in it."""
        arrived = self._arrivals[step]
        before = self._arrivals[step - 1] if step else np.float32(0)
        left = np.maximum(self._backlogs + arrived - self._replicas, 0)
        return left, np.clip(left - self._in_batches - arrived, 0, before)

    def _switch(self, value: Array) -> Array:
        """Return the least over the replicas to go to: down is free, up costs their start."""
        down = np.minimum.accumulate(value, axis=0)
        up = np.minimum.accumulate((value + self._starts)[::-1], axis=0)[::-1] - self._starts
        result: Array = np.minimum(down, up)
        return result
