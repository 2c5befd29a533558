from __future__ import annotations

import html.parser
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pipelines.embed_corpus as command
from omai_ray.cli import build_parser
from omai_ray.settings import Settings
from pipelines.charts import histogram, line_chart, stacked_bars
from pipelines.job import EmbedJob
from pipelines.report import Report
from pipelines.report_page import render_page
from pipelines.timeline import MOST_POINTS, Timeline
from pipelines.unit import UnitResult

Corpus = Callable[..., Path]
Job = Callable[..., EmbedJob]
Run = Callable[..., Report]


@pytest.fixture
def report() -> Report:
    """Return the report of two actors that did three units."""
    report = Report(
        output="out", model="m", fingerprint="f" * 64, max_dead=0.01, files=1, price_per_hour=3.6
    )
    for unit, (worker, started) in enumerate((("one", 0), ("two", 1), ("one", 10))):
        report.add(
            UnitResult(
                output=f"{unit}",
                key="",
                rows=100,
                written=100,
                tokens=1000,
                forward_tokens=900,
                computed_tokens=1000,
                lengths=[0] * 3 + [100] + [0] * 20,
                forward_s=8.0,
                started=1000.0 + started,
                ended=1010.0 + started,
                worker=worker,
            )
        )
    report.run_s = 20.0
    return report


class Reader(html.parser.HTMLParser):
    """Takes a page apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it, and what it would load."""
        self.tags.append(tag)
        self.outside += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        """Keep it."""
        self.text += data


def test_a_reports_rates_are_of_actors_and_of_the_run(report: Report) -> None:
    """An actor's time is from its first unit to its last; 3,000 tokens in 30 s at 3.6 an hour."""
    assert report.actor_s == 30.0
    assert report.tokens_per_actor_s == 100.0
    assert report.tokens_per_s == 150.0
    assert report.padding_waste == pytest.approx(0.1)
    assert report.cost_per_million_tokens == pytest.approx(10.0)
    values = json.loads(report.to_json())
    assert (values["replicas_used"], values["workers"]["one"]["units"]) == (2, 2)
    assert values["lengths"][3] == 300
    assert "10 a million tokens" in report.to_text()


def test_a_report_of_nothing_divides_by_nothing() -> None:
    """Such as of a run that found all done."""
    empty = Report(output="o", model="m", fingerprint="f", max_dead=0, price_per_hour=1.0)
    assert (empty.cost_per_million_tokens, empty.padding_waste, empty.actor_s) == (None, 0, 0)
    assert Reader(render_page(empty)).tags.count("svg") == 4


def test_a_run_counts_lengths_padding_and_its_actor(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """Lengths of what was embedded, begin and end included: 3, 3, 6 and, cut to it, 8 tokens."""
    write_corpus({"a.parquet": ["x", None, "y", "a b c d", "w " * 20]})
    report = run(make_job())
    assert report.lengths[:5] == [0, 2, 1, 1, 0]
    assert (report.tokens, report.forward_tokens, report.computed_tokens) == (20, 20, 4 * 8)
    assert report.padding_waste == pytest.approx(1 - 20 / 32)
    assert [times.rows for times in report.workers.values()] == [5]


def test_a_runs_report_is_kept_until_another_has_work_to_do(
    write_corpus: Corpus, make_job: Job, run: Run
) -> None:
    """As JSON and as a page."""
    write_corpus({"a.parquet": ["x", None]})
    job = make_job()
    run(job)
    kept = json.loads((Path(job.output) / "_run" / "report.json").read_text())
    assert (kept["rows_read"], kept["rows_dead"]) == (2, 1)
    run(job)
    assert json.loads((Path(job.output) / "_run" / "report.json").read_text()) == kept
    assert "null" in Reader((Path(job.output) / "_run" / "report.html").read_text()).text


def test_a_page_shows_the_run_and_loads_nothing(report: Report) -> None:
    """No script, no file, no network."""
    report.dead_reasons = {"null": 2}
    report.timeline.add(20.0, 300, 3000)
    page = render_page(report)
    read = Reader(page)
    assert read.tags.count("svg") == 5
    assert not {"script", "link", "img", "iframe"} & set(read.tags)
    assert read.outside == []
    assert "url(" not in page
    for shown in ("300", "10.0%", "2 of up to", "actor 2, 1 units", "Seconds by stage", "8-15"):
        assert shown in read.text
    assert "prefers-color-scheme: dark" in page


def test_names_from_outside_are_escaped_on_a_page(report: Report) -> None:
    """A directory or a model may be called anything."""
    evil = "<script>alert('x')</script>\"&"
    report.output = report.model = evil
    report.dead_reasons = {evil: 1}
    read = Reader(render_page(report))
    assert "script" not in read.tags
    assert read.text.count(evil) >= 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e12)), max_size=20))
@example([(0.0, 5e-324)])
@example([(5e-324, 1.0)])
def test_charts_are_well_formed_and_inside_their_frame(points: list[tuple[float, float]]) -> None:
    """Whatever the numbers are."""
    bins = [(f"<{x}>", int(y)) for x, y in points]
    bars = [(name, (float(count), 1.0)) for name, count in bins]
    for svg in (line_chart(points, "<end>"), histogram(bins), stacked_bars(bars, ("a", "b"))):
        root = ElementTree.fromstring(svg)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for bar in root.iter("rect"):
            x, y, w, h = (float(bar.attrib[name]) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + max(w, 0) <= width
            assert 0 <= y <= y + h <= height
        for line in root.iter("polyline"):
            numbers = [float(n) for n in re.findall(r"[-\d.]+", line.attrib["points"])]
            assert all(0 <= x <= width for x in numbers[::2])
            assert all(0 <= y <= height for y in numbers[1::2])


def test_a_timeline_stays_short_and_keeps_its_ends() -> None:
    """A day's run, told twice a second; its rates are of equal windows."""
    timeline = Timeline()
    for tick in range(1, 2 * 86_400 + 1):
        timeline.add(tick / 2, tick * 10, tick * 100)
    assert len(timeline.points) <= MOST_POINTS
    assert (timeline.points[0], timeline.points[-1]) == (
        (0.0, 0, 0),
        (86_400.0, 1_728_000, 17_280_000),
    )
    rates = timeline.rates()
    assert 30 <= len(rates) <= 60
    assert all(math.isclose(rows, 20) and math.isclose(tokens, 200) for _, rows, tokens in rates)


def test_a_rate_is_of_no_shorter_time_than_others_at_the_end() -> None:
    """Totals that come at once after others would show as a peak; falling ones as less than 0."""
    timeline = Timeline()
    for at_s, rows in ((2.0, 20), (4.0, 10), (6.0, 30), (6.1, 50)):
        timeline.add(at_s, rows, 0)
    assert timeline.rates() == [
        (2.0, 10.0, 0.0),
        (4.0, 0.0, 0.0),
        (6.1, pytest.approx(40 / 2.1), 0.0),
    ]


def test_the_command_writes_the_page_where_it_is_asked_to(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the one in the output."""
    monkeypatch.setattr(command, "embed_corpus", lambda *_: report)
    page = tmp_path / "page.html"
    words = ["embed", "in", "out", "--column", "text", "--price-per-hour", "2", "--report"]
    args = build_parser().parse_args([*words, str(page)])
    assert command.run(args, Settings()) == 0
    assert page.read_text() == render_page(report)


def test_a_page_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after hours of it."""
    monkeypatch.setattr(command, "embed_corpus", lambda *_: pytest.fail("work was begun"))
    for path in (tmp_path / "missing" / "page.html", tmp_path):
        args = build_parser().parse_args(
            ["embed", "in", "out", "--column", "text", "--report", str(path)]
        )
        assert command.run(args, Settings()) == 1
        assert f"--report {path}: no file can be written there" in capsys.readouterr().err
