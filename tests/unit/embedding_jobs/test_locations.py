from __future__ import annotations

from pathlib import Path

import pytest

from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.errors import ConfigError, InvalidRequest

S3 = "s3://corpora/shared?endpoint_override=http://127.0.0.1:9000"


@pytest.fixture
def allowed(tmp_path: Path) -> AllowedLocations:
    """Allow a directory for each account, a bucket's prefix and another whole bucket."""
    (tmp_path / "acct_1" / "deep").mkdir(parents=True)
    (tmp_path / "acct_2").mkdir()
    return AllowedLocations([f"{tmp_path}/{{account}}", S3, "gs://whole"])


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "given",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/a.parquet",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://host/a",
        "/etc",
        "/etc/passwd",
        "etc/passwd",
        "~/a.parquet",
        "s3://another/shared/a.parquet",
        "s3://corpora",
        "s3://corpora/sharedness/a.parquet",
        "s3://corpora/shared/../private/a.parquet",
        "s3://corpora/shared/./a",
        "s3://corpora/shared//a",
        "s3://corpora/shared/a?endpoint_override=http://169.254.169.254",
        "s3://key:secret@corpora/shared/a",
        "s3://corpora/shared/*.parquet",
        "s3://corpora/shared/[ab]",
        "s3:///shared",
        "gs://",
        "gs://wholesale/a",
        "s3://whole/a",
        "/etc\0",
        "",
        "s3://corpora/shared/a\nb",
        "/proc/self/cwd/x://y",
        "{tmp}/acct_1/../acct_1/deep/x://y",
        "{tmp}/acct_1/*/x://y",
    ],
)
def test_a_location_elsewhere_is_refused_by_its_field(
    allowed: AllowedLocations, given: str, tmp_path: Path
) -> None:
    """With 400, and without the secret that may be in it."""
    with pytest.raises(InvalidRequest, match="Invalid 'input'") as refused:
        allowed.resolve("input", given.replace("{tmp}", str(tmp_path)), "acct_1")
    assert "input" == refused.value.param
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("s3://corpora/shared", "s3://corpora/shared"),
        ("s3://corpora/shared/a/b.parquet", "s3://corpora/shared/a/b.parquet"),
        ("S3A://corpora/shared/a/", "s3://corpora/shared/a"),
        ("gs://whole/a%2e%2e/b", "gs://whole/a%2e%2e/b"),
    ],
)
def test_a_location_below_an_entry_has_its_options(
    allowed: AllowedLocations, given: str, found: str
) -> None:
    """The store is the one that the operator names, not the one that a request does."""
    place, _ = allowed.resolve("input", given, "acct_1")
    assert found == str(place)
    endpoint = (("endpoint_override", "http://127.0.0.1:9000"),)
    assert (endpoint if place.scheme == "s3" else ()) == place.options


def test_an_account_has_what_its_id_stands_in(allowed: AllowedLocations, tmp_path: Path) -> None:
    """And nothing of another account's."""
    place, entry = allowed.resolve("output", f"{tmp_path}/acct_1/deep/new", "acct_1")
    assert tmp_path / "acct_1" / "deep" / "new" == place.local_path
    assert tmp_path / "acct_1" == entry.local_path
    with pytest.raises(InvalidRequest, match="may not use") as refused:
        allowed.resolve("output", f"{tmp_path}/acct_1/deep/new", "acct_2")
    assert "location_not_allowed" == refused.value.code
    assert f"{tmp_path}/acct_2" in refused.value.message


def test_links_lead_nowhere_else(allowed: AllowedLocations, tmp_path: Path) -> None:
    """A link below an entry is what it leads to; so is an entry that is a link."""
    (tmp_path / "acct_1" / "out").symlink_to("/etc")
    (tmp_path / "acct_1" / "in").symlink_to(tmp_path / "acct_1" / "deep")
    with pytest.raises(InvalidRequest, match=r"acct_1/out/passwd'\. Allowed locations: "):
        allowed.resolve("input", f"{tmp_path}/acct_1/out/passwd", "acct_1")
    place, _ = allowed.resolve("input", f"{tmp_path}/acct_1/in/a", "acct_1")
    assert tmp_path / "acct_1" / "deep" / "a" == place.local_path
    (tmp_path / "link").symlink_to(tmp_path / "acct_1")
    place, _ = AllowedLocations([f"{tmp_path}/link"]).resolve("input", f"{tmp_path}/link/a", "x")
    assert tmp_path / "acct_1" / "a" == place.local_path


@pytest.mark.fault(23)
def test_a_refusal_tells_nothing_of_where_links_lead(tmp_path: Path) -> None:
    """Neither those of the server, nor those of entries; a loop is refused like any other."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    (real / "loop").symlink_to(real / "loop")
    allowed = AllowedLocations([str(link)])
    for given in ("/proc/self/cwd/x", f"{link}/loop/x", f"{link}/{'n' * 300}/../x", "/x" * 5000):
        with pytest.raises(InvalidRequest, match="Invalid 'input'") as refused:
            allowed.resolve("input", given, "acct_1")
        assert str(Path.cwd()) not in refused.value.message
        assert str(real) not in refused.value.message


def test_a_path_is_looked_up_below_an_entry_alone(
    allowed: AllowedLocations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether another exists, or hangs, is nobody's to find out."""

    def looked(*_: object, **__: object) -> Path:
        raise AssertionError("looked at the disk")

    monkeypatch.setattr(Path, "resolve", looked)
    with pytest.raises(InvalidRequest, match="may not use '/proc/self/cwd/x'"):
        allowed.resolve("input", "/proc/self/cwd/x", "acct_1")


def test_nothing_is_allowed_unless_it_is_listed() -> None:
    """Which an error says."""
    with pytest.raises(InvalidRequest, match="Allowed locations: none"):
        AllowedLocations([]).resolve("input", "s3://bucket/key", "acct_1")


def test_an_entry_that_is_no_location_is_refused_at_start() -> None:
    """As are credentials in one, which stay unsaid."""
    with pytest.raises(ConfigError, match=r"embedding_jobs.locations: unknown scheme 'http'"):
        AllowedLocations(["http://host/a"])
    with pytest.raises(ConfigError, match="credentials do not belong") as refused:
        AllowedLocations(["s3://key:secret@bucket"])
    assert "secret" not in refused.value.message
