"""`omai-ray top`: what the platform does now, in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from omai_ray.cli.common import Commands, add_state_dir, command, settings_of
from omai_ray.cli.scrape import ModelNow, Now, Scrape, between, scrape
from omai_ray.errors import ConfigError

REFRESH_S = 2.0
WINDOW_S = 12.0
_PIPE_WIDTH = 160
_HEADINGS = ("running", "waiting", "in tok/s", "out tok/s", "TTFT p50", "p95", "KV", "cached")


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "top", "show what the platform does now, until Ctrl-C", _top)
    add_state_dir(parser)
    option = parser.add_argument
    option("--metrics-url", action="append", metavar="URL",
        help="a node's metrics, http://HOST:PORT/metrics; may be repeated (default: those of the "
        "`omai-ray serve` with that state)")  # fmt: skip
    option("--once", action="store_true", help="print one table and leave")
    option("--window", type=_seconds, default=WINDOW_S, metavar="SECONDS",
        help=f"of how long rates and times are (default: {WINDOW_S:g})")  # fmt: skip


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds, above 0 up to 3600, got '{text}'")
    return value


def _top(args: argparse.Namespace) -> int:
    urls = args.metrics_url or [_own_url(settings_of(args).state_dir)]
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    if args.once:
        before = scrape(urls)
        time.sleep(args.window)
        console.print(render(between(before, scrape(urls))))
        return 0
    views = _views(urls, args.window)
    if not console.is_terminal:
        for view in views:
            console.print(view)
        return 0
    with Live(next(views), console=console, auto_refresh=False, screen=True) as live:
        for view in views:
            live.update(view, refresh=True)
    return 0


def _own_url(state_dir: Path) -> str:
    try:
        cluster = json.loads((state_dir / "cluster.json").read_text(encoding="utf-8"))
        return str(cluster["metrics"])
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"no `omai-ray serve` runs with the state {state_dir}: start one, choose another "
            "--state-dir, or name a node of a cluster with --metrics-url"
        ) from None


def _views(urls: list[str], window_s: float) -> Iterator[Group]:
    """Yield a view every REFRESH_S, of the last window_s, without end."""
    scrapes: deque[Scrape] = deque([scrape(urls)])
    while True:
        now = scrape(urls)
        scrapes.append(now)
        while len(scrapes) > 2 and now.at_s - scrapes[1].at_s >= window_s:
            scrapes.popleft()
        yield render(between(scrapes[0], now))
        time.sleep(REFRESH_S)


def render(now: Now) -> Group:
    """Return what is shown."""
    head = (
        f"{now.active} requests at work, {now.requests_per_s:.1f} a second, "
        f"{now.failed_per_s:.1f} of them failed"
    )
    replicas = ", ".join(
        f"{name} {healthy} of {wanted}" for name, (healthy, wanted) in now.replicas.items()
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for model in now.models:
        table.add_row(*_row(model))
    lines = [Text(head), Text(f"replicas: {replicas or 'none yet'}"), Text("")]
    return Group(*lines, table if now.models else Text("no model has reported yet"))


def _row(model: ModelNow) -> tuple[str, ...]:
    return (
        escape(model.name),
        str(model.running),
        str(model.waiting),
        f"{model.input_per_s:.1f}",
        f"{model.output_per_s:.1f}",
        _time(model.first_token_p50_s),
        _time(model.first_token_p95_s),
        _share(model.kv_use),
        _share(model.cached),
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _share(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"
