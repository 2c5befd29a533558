from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omai_ray import storage
from omai_ray.errors import ConfigError
from omai_ray.storage import Location, ObjectNotFound, Stat, StorageError
from tests.s3_server import S3Server, s3_server

BUCKET = "things"
Root = Callable[..., Location]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Serve an empty bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody checks")
    with s3_server(BUCKET) as server:
        yield server


@pytest.fixture
def in_s3(s3: S3Server) -> Location:
    """Return a prefix in the bucket."""
    options = f"endpoint_override={s3.endpoint}&request_timeout=1&max_attempts=2"
    return Location.parse(f"s3://{BUCKET}/some/prefix?{options}")


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return an empty place, in each kind of store."""
    if request.param == "file":
        return Location.parse(tmp_path / "root")
    place: Location = request.getfixturevalue("in_s3")
    return place


def test_what_is_written_is_read_listed_and_deleted_alike_in_every_store(
    root: Location, tmp_path: Path
) -> None:
    """Names are as they are, whatever characters they have."""
    assert (root.list(), root.exists(), root.stat()) == ([], False, None)
    names = ["a", "k=1/v=x y/b%20c?é.bin", "z/empty"]
    contents = [b"first", b"second", b""]
    for name, content in zip(names, contents, strict=True):
        root.child(name).write_bytes(content)
    local = tmp_path / "made"
    local.write_bytes(b"replaced")
    root.child("a").write_from(local)
    assert not local.exists()
    assert [(stat.name, stat.size) for stat in root.list()] == [
        ("a", 8),
        ("k=1/v=x y/b%20c?é.bin", 6),
        ("z/empty", 0),
    ]
    assert [stat.name for stat in root.list(recursive=False)] == ["a"]
    assert [root.child(name).read_bytes() for name in names] == [b"replaced", b"second", b""]
    root.child(names[1]).delete()
    root.child(names[1]).delete()
    assert [stat.name for stat in root.list()] == ["a", "z/empty"]


def test_a_look_up_and_a_list_tell_the_same(root: Location) -> None:
    """A file is known again by its size and time."""
    place = root.child("a")
    place.write_bytes(b"x")
    found = place.stat()
    assert found is not None
    assert root.list() == [Stat("a", found.size, found.mtime_ns)]


def test_any_part_can_be_read(root: Location) -> None:
    """As range requests need it."""
    root.child("a").write_bytes(bytes(range(100)))
    with root.child("a").open_input() as file:
        assert file.size == 100
        file.seek(40)
        assert (file.read(3), file.tell()) == (bytes([40, 41, 42]), 43)
        file.seek(-2, io.SEEK_END)
        assert file.read() == bytes([98, 99])
        assert file.read(5) == b""


def test_what_is_not_there_cannot_be_read(root: Location) -> None:
    """The error names the place."""
    with pytest.raises(ObjectNotFound, match=f"{root.child('a')}: no such file or object"):
        root.child("a").read_bytes()


def test_a_failed_write_on_a_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing beside it."""
    place = Location.parse(tmp_path / "a")
    place.write_bytes(b"old")

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=f"{place}: No space left on device"):
        place.write_bytes(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_file_of_another_disk_is_moved_by_way_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target still shows up whole, by a rename."""
    source, replace = tmp_path / "source", Path.replace
    source.write_bytes(b"content")

    def across(self: Path, target: Any) -> Path:
        if self == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", across)
    Location.parse(tmp_path / "d" / "target").write_from(source)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["target"]
    assert (tmp_path / "d" / "target").read_bytes() == b"content"
    assert not source.exists()


def test_a_large_object_is_whole_and_an_upload_that_breaks_leaves_nothing(
    in_s3: Location, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, of which none shows before the last."""
    monkeypatch.setattr(storage, "COPY_BYTES", 1 << 20)
    source, content = tmp_path / "source", bytes(12 << 20)
    source.write_bytes(content)
    s3.fail(403, times=float("inf"), method="PUT", path="partNumber=2")
    with pytest.raises(StorageError, match=r"s3://things/some/prefix/large: .*ACCESS_DENIED"):
        in_s3.child("large").write_from(source)
    assert s3.buckets[BUCKET] == {}
    assert source.exists()
    s3.faults.clear()
    in_s3.child("large").write_from(source)
    assert s3.buckets[BUCKET]["some/prefix/large"].content == content


def test_a_file_that_cannot_be_read_to_its_end_does_not_become_an_object(
    in_s3: Location, s3: S3Server
) -> None:
    """Neither where reading fails nor where there is less than there was."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if part := super().read(4):
                return part
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match="Input/output error"):
        in_s3.child("a")._upload(Broken(b"half"), 8)
    with pytest.raises(StorageError, match="changed while it was read"):
        in_s3.child("a")._upload(io.BytesIO(b"half"), 8)
    assert [key for key in s3.buckets[BUCKET] if not key.endswith("/")] == []


def test_a_small_read_is_tried_again_though_the_sdk_gives_up(
    in_s3: Location, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error's text is longer than the range that it answers."""
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)
    in_s3.child("a").write_bytes(b"tiny")
    s3.fail(503, times=3, method="GET")
    assert in_s3.child("a").read_bytes() == b"tiny"
    assert [fault.times for fault in s3.faults] == [0]


def test_a_silent_store_is_an_error_in_bounded_time(in_s3: Location, s3: S3Server) -> None:
    """Each attempt ends, and so do attempts."""
    s3.fail(None, times=float("inf"), method="HEAD")
    with pytest.raises(StorageError, match="s3://things/some/prefix"):
        in_s3.exists()
    assert len(s3.requests) == 2


def test_the_endpoint_and_region_of_the_environment_are_taken(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As other tools take them; a URI's own come first."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    storage._filesystem.cache_clear()
    Location.parse(f"s3://{BUCKET}/a").write_bytes(b"x")
    assert s3.buckets[BUCKET]["a"].content == b"x"
    storage._filesystem.cache_clear()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hdfs://host/a", "unknown scheme 'hdfs'"),
        ("s3:///key", "no bucket"),
        ("gs://", "no bucket"),
        ("s3://b/k?timeout=3", r"unknown option 'timeout' \(there are: region, "),
        ("gs://b/k?region=x", "unknown option 'region'"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused_saying_why(place: str, message: str) -> None:
    """Before anything is asked of a store."""
    with pytest.raises(ConfigError, match=message):
        Location.parse(place)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_an_option_that_is_no_positive_number_is_refused(value: str) -> None:
    """With its name and value."""
    place = Location.parse(f"s3://b/k?region=x&request_timeout={value}")
    with pytest.raises(ConfigError, match=f"request_timeout is '{value}'"):
        place.exists()


def test_a_flag_is_true_or_false() -> None:
    """Anything else might be meant either way."""
    with pytest.raises(ConfigError, match="anonymous is 'yes'; it is true or false"):
        Location.parse("s3://b/k?region=x&anonymous=yes").exists()


def test_a_secret_in_a_uri_is_refused_without_being_repeated() -> None:
    """URIs are shown, logged and kept."""
    with pytest.raises(ConfigError, match="environment") as refused:
        Location.parse("s3://someone:hunter2@bucket/key")
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize(
    "place",
    [
        "s3://AKIA1:hun/ter2@bucket/key",
        "s3://AKIA1:hunter2@bucket/key?regon=x",
        "s3://AKIA1:hun?ter2@bucket/key",
        "s3n://AKIA1:hunter2@bucket/key",
        "s3://bucket/key?secret_key=hunter2",
        "s3://bucket/key?region=x&hunter2",
        "s3://bucket/key?endpoint_override=https://AKIA1:hunter2@host",
        "s3:///hunter2",
    ],
)
def test_what_is_refused_is_not_repeated(place: str) -> None:
    """A secret may be anywhere in it."""
    with pytest.raises(ConfigError) as refused:
        Location.parse(place)
    assert not [part for part in ("AKIA1", "hun", "ter2") if part in refused.value.message]


def test_an_endpoint_may_have_a_port() -> None:
    """It is no password, and a bucket's root no name of a user."""
    place = Location.parse("s3://bucket?endpoint_override=http://host:9000")
    assert (str(place), dict(place.options)) == (
        "s3://bucket", {"endpoint_override": "http://host:9000"}
    )  # fmt: skip


def test_places_survive_text_and_pickling() -> None:
    """They travel to workers."""
    for text in ("s3://b/k=1/x?region=eu&scheme=http", "gs://b/x y?anonymous=true", "/a/b"):
        place = Location.parse(text)
        assert place == Location.parse(place.uri) == pickle.loads(pickle.dumps(place))
        assert Location.parse(place) is place
    assert str(Location.parse("s3a://b/k/?region=eu")) == "s3://b/k"
    assert Location.parse("gs://b/part-?.parquet").path == "b/part-?.parquet"


def test_a_child_stays_below(root: Location) -> None:
    """Whatever a name is made of."""
    for name in ("../x", "/x", "a//b", "", "a/./b", "a\0b"):
        with pytest.raises(ValueError, match="not a relative name"):
            root.child(name)
    assert root.child("a/b").parent == root.child("a")
    assert root.child("a/b").name == "b"
