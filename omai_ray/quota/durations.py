"""Durations as Go writes them, which is how OpenAI's rate limit headers do."""

from __future__ import annotations


def go_duration(seconds: float) -> str:
    """Return whole milliseconds as Go prints them: `0s`, `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    total_ms = max(0, int(seconds * 1000 + 1e-6))
    if total_ms == 0:
        return "0s"
    if total_ms < 1000:
        return f"{total_ms}ms"
    minutes, ms = divmod(total_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
