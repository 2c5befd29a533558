"""Files and objects by one name: a local path, `s3://bucket/key` or `gs://bucket/key`.

What is written is whole or not there. On a local disk that is a temporary name, fsync, rename and
fsync of the directory; on an object store one upload under the final key, which shows nothing
before it is complete. Every failure is a StorageError that names the location.

Credentials come from the environment, as the stores' own tools read them (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, ~/.aws; GOOGLE_APPLICATION_CREDENTIALS), and never from
a URI. So do AWS_REGION, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL, which a
URI's query overrides: `s3://bucket/key?region=eu-west-1&endpoint_override=https://host:port`.
"""

from __future__ import annotations

import errno
import io
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from uuid import uuid4

from omai_ray.errors import ConfigError, OMAiError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

OPTIONS = {
    "s3": ("region", "endpoint_override", "scheme", "anonymous", "connect_timeout",
           "request_timeout", "max_attempts"),
    "gs": ("endpoint_override", "scheme", "anonymous", "retry_time_limit"),
}  # fmt: skip
ALIASES = {"s3a": "s3", "gcs": "gs"}
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0
MAX_ATTEMPTS = 6
GCS_RETRY_S = 120.0
COPY_BYTES = 8 << 20
# The AWS SDK reads an answer into a buffer of the range's size, and does not try again where an
# error's text, a 503's too, is longer than that.
_SDK_GAVE_UP = "INTERNAL_FAILURE"
FIRST_PAUSE_S = 0.2
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_QUERY = re.compile(r"\?([a-z_]+=.*)", re.DOTALL)


class StorageError(OMAiError):
    """A file or object that could not be read, written, listed or deleted."""

    status = 503
    default_code = "storage_unavailable"


class ObjectNotFound(StorageError):
    """There is nothing at that location."""

    status = 404
    default_code = "not_found"


class Stat(NamedTuple):
    """A file or object as it is now. name: relative to what was listed, its own name otherwise.

    mtime_ns is whole seconds on S3, where a list may tell milliseconds and a look-up does not.
    """

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Location:
    """One place in one store; it need not exist.

    scheme: `file`, `s3` or `gs`. path: absolute, or `bucket/key`, as they are, never quoted.
    options: (name, value) pairs of the URI's query, which `child` and `parent` keep.
    """

    scheme: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, place: str | os.PathLike[str] | Location) -> Location:
        """Return the location that a path or URI names.

        Raises ConfigError, which never repeats a URI: there may be a secret in it.
        """
        if isinstance(place, Location):
            return place
        given = os.fspath(place)
        match = _URI.fullmatch(given)
        if match is None:
            return cls("file", os.path.abspath(given))  # noqa: PTH100 - a glob is not a Path
        scheme, rest = ALIASES.get(match[1].lower(), match[1].lower()), match[2]
        if scheme == "file":
            return cls("file", os.path.abspath(rest))  # noqa: PTH100
        if scheme not in OPTIONS:
            raise ConfigError(f"unknown scheme '{match[1]}'; use a path, s3:// or gs://")
        # A secret may have a slash, before which no @ is left to tell it by.
        if any(mark in re.split("[/?]", rest, maxsplit=1)[0] for mark in "@:"):
            raise _credentials(f"{scheme}://…")
        query = _QUERY.search(rest)
        path = rest[: query.start()] if query else rest
        options = _parse_options(scheme, query[1]) if query else ()
        bucket, _, key = path.partition("/")
        if not bucket:
            raise ConfigError(f"no bucket in {scheme}://…; write {scheme}://BUCKET/KEY")
        return cls(scheme, f"{bucket}/{key}".rstrip("/"), options)

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return self.scheme == "file"

    @property
    def local_path(self) -> Path:
        """The path of a local one."""
        if not self.is_local:
            raise ValueError(f"{self} is not a local path")
        return Path(self.path)

    @property
    def uri(self) -> str:
        """What `parse` turns into this again, options included; a plain path for a local one."""
        query = "&".join(f"{name}={value}" for name, value in self.options)
        return f"{self}?{query}" if query else str(self)

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.scheme}://{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path; a bucket's name for its root."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """Where it lies; a bucket's root is its own parent."""
        return replace(self, path=self.path.rpartition("/")[0] or self.path)

    def child(self, name: str) -> Location:
        """Return a place below this one; name may have parts, none of them empty, `.` or `..`."""
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise ValueError(f"{name!r} is not a relative name")
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    def stat(self) -> Stat | None:
        """Return the file's or object's; None where there is none, or a directory."""
        with _failures(self):
            info = self._filesystem.get_file_info(self.path)
        return Stat(self.name, info.size, self._mtime_ns(info)) if info.is_file else None

    def exists(self) -> bool:
        """Say whether a file or object is here."""
        return self.stat() is not None

    def list(self, *, recursive: bool = True) -> list[Stat]:
        """Return the files or objects below, in the order of their names; empty where none are."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path, recursive=recursive, allow_not_found=True)
        skip = len(self.path.rstrip("/")) + 1
        with _failures(self):
            infos = self._filesystem.get_file_info(selector)
        stats = [Stat(i.path[skip:], i.size, self._mtime_ns(i)) for i in infos if i.is_file]
        return sorted(stats)

    def _mtime_ns(self, info: Any) -> int:
        ns: int = info.mtime_ns or 0
        return ns - ns % 1_000_000_000 if self.scheme == "s3" else ns

    def open_input(self) -> Input:
        """Open for reading at any position. Raises ObjectNotFound or StorageError."""
        with _failures(self):
            return Input(self, self._filesystem.open_input_file(self.path))

    def open_output(self) -> Output:
        """Open for writing piece by piece, at a place that nobody reads before it is complete."""
        with _failures(self):
            if self.is_local:
                self.local_path.parent.mkdir(parents=True, exist_ok=True)
            return Output(self, self._filesystem.open_output_stream(self.path))

    def read_bytes(self) -> bytes:
        """Return the whole content."""
        with self.open_input() as file:
            return file.read()

    def write_bytes(self, content: bytes) -> None:
        """Replace the content, durably and as a whole."""
        if not self.is_local:
            self._upload(io.BytesIO(content), len(content))
            return
        with _failures(self), self._local_temporary() as temporary:
            temporary.write_bytes(content)
            self._publish(temporary)

    def write_from(self, source: Path) -> None:
        """Move a finished local file here, durably and as a whole; it is gone afterwards."""
        if not self.is_local:
            with _failures(self), source.open("rb") as file:
                self._upload(file, source.stat().st_size)
            source.unlink()
            return
        with _failures(self):
            self.local_path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._publish(source)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with self._local_temporary() as temporary:
                    shutil.copyfile(source, temporary)
                    self._publish(temporary)
                source.unlink()

    def delete(self) -> None:
        """Remove the file or object; nothing happens where none is."""
        with _failures(self):
            if self.is_local:
                self.local_path.unlink(missing_ok=True)
            elif self.exists():
                self._filesystem.delete_file(self.path)

    @property
    def _filesystem(self) -> pafs.FileSystem:
        bucket = "" if self.is_local else self.path.partition("/")[0]
        return _filesystem(self.scheme, bucket, self.options)

    @contextmanager
    def _local_temporary(self) -> Iterator[Path]:
        """Give a name beside the target, which readers of directories skip."""
        self.local_path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.local_path.with_name(f".{uuid4().hex}.tmp")
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path) -> None:
        """Rename a finished file to its visible name, durably."""
        sync(temporary)
        temporary.replace(self.path)
        sync(self.local_path.parent)

    def _upload(self, source: BinaryIO, size: int) -> None:
        """Write one object. A stream that cannot be read to its end must not become one."""
        with _failures(self):
            stream = self._filesystem.open_output_stream(self.path)
            try:
                sent = 0
                while part := source.read(COPY_BYTES):
                    stream.write(part)
                    sent += len(part)
                whole = sent == size
            except BaseException:
                self._discard(stream)
                raise
            if not whole:
                self._discard(stream)
                raise StorageError(f"{self}: the file to upload changed while it was read")
            stream.close()

    def _discard(self, stream: Any) -> None:
        """End an upload that failed: pyarrow can only close it, which may show what was sent."""
        try:
            stream.close()
        except OSError:
            if not self.is_local:
                return  # a part failed, so the store never completed the object
        self.delete()


class Input(io.RawIOBase):
    """A file or object open for reading, for one thread at a time."""

    def __init__(self, location: Location, file: Any) -> None:
        self._location, self._file = location, file
        self.size: int = file.size()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._file.tell())

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, fewer only at the end."""
        position = self.tell()
        for attempt in range(MAX_ATTEMPTS):
            try:
                with _failures(self._location):
                    content: bytes = self._file.read(None if size is None or size < 0 else size)
                    return content
            except StorageError as error:
                if _SDK_GAVE_UP not in error.message or attempt == MAX_ATTEMPTS - 1:
                    raise
            time.sleep(random.uniform(0.5, 1) * FIRST_PAUSE_S * 2**attempt)  # noqa: S311
            self.seek(position)
        raise AssertionError("the last attempt returned or raised")

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return how many bytes there were."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Let go of the file."""
        if not self.closed:
            self._file.close()
        super().close()


class Output:
    """A file or object being written, by one thread at a time. `close` it, or `discard` it.

    Unlike what `write_from` makes, it may be seen unfinished: on a disk as it grows, and on an
    object store after a failure, until it is discarded.
    """

    def __init__(self, location: Location, stream: Any) -> None:
        self._location, self._stream = location, stream

    def write(self, content: bytes) -> None:
        """Add to it. Memory stays bounded: what an object store uploads behind is waited for."""
        with _failures(self._location):
            self._stream.write(content)
            self._stream.flush()

    def close(self) -> None:
        """Return once all of it is durable."""
        with _failures(self._location):
            self._stream.close()
            if self._location.is_local:
                sync(self._location.local_path)
                sync(self._location.local_path.parent)

    def discard(self) -> None:
        """Remove it."""
        self._location._discard(self._stream)


def sync(path: Path) -> None:
    """Wait until a file, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _failures(location: Location) -> Iterator[None]:
    """Turn what the operating system or pyarrow raises into a StorageError with the location."""
    try:
        yield
    except FileNotFoundError:
        raise ObjectNotFound(f"{location}: no such file or object") from None
    except OSError as error:
        raise StorageError(f"{location}: {error.strerror or error}") from error


def _parse_options(scheme: str, query: str) -> tuple[tuple[str, str], ...]:
    options = {}
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        if name not in OPTIONS[scheme]:
            known = ", ".join(OPTIONS[scheme])
            what = f"unknown option '{name}'" if equals else "an option without a value"
            raise ConfigError(f"{scheme}://…: {what} (there are: {known})")
        if name == "endpoint_override" and "@" in value:
            raise _credentials(f"{scheme}://…, {name}")
        options[name] = value
    return tuple(sorted(options.items()))


def _credentials(place: str) -> ConfigError:
    return ConfigError(f"{place}: credentials do not belong in a URI; give them in the environment")


@lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str, options: tuple[tuple[str, str], ...]) -> pafs.FileSystem:
    import pyarrow.fs

    if scheme == "file":
        return pyarrow.fs.LocalFileSystem()
    return _s3(bucket, dict(options)) if scheme == "s3" else _gcs(bucket, dict(options))


def _s3(bucket: str, options: dict[str, str]) -> pafs.FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    env = os.environ
    endpoint = options.get("endpoint_override") or (
        env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
    )
    region = options.get("region") or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    if region is None and not endpoint:
        with _failures(Location("s3", bucket)):
            region = resolve_s3_region(bucket)
    return S3FileSystem(
        **_endpoint(endpoint, options.get("scheme")),
        anonymous=_flag(bucket, options, "anonymous"),
        region=region or "us-east-1",  # stores that are not Amazon's sign with any
        connect_timeout=_number(bucket, options, "connect_timeout", CONNECT_TIMEOUT_S),
        request_timeout=_number(bucket, options, "request_timeout", REQUEST_TIMEOUT_S),
        retry_strategy=AwsStandardS3RetryStrategy(
            max_attempts=int(_number(bucket, options, "max_attempts", MAX_ATTEMPTS))
        ),
        allow_delayed_open=True,  # a small object is then one request, not three
    )


def _gcs(bucket: str, options: dict[str, str]) -> pafs.FileSystem:
    from pyarrow.fs import GcsFileSystem

    limit_s = _number(bucket, options, "retry_time_limit", GCS_RETRY_S)
    return GcsFileSystem(
        **_endpoint(options.get("endpoint_override", ""), options.get("scheme")),
        anonymous=_flag(bucket, options, "anonymous"),
        retry_time_limit=timedelta(seconds=limit_s),
    )


def _endpoint(url: str, scheme: str | None) -> dict[str, str]:
    """Return the arguments for `https://host:port`, or for a bare `host:port`."""
    given, _, host = url.rpartition("://")
    chosen = scheme or given or "https"
    return {"scheme": chosen, "endpoint_override": host.rstrip("/")} if host else {"scheme": chosen}


def _flag(bucket: str, options: dict[str, str], name: str) -> bool:
    """Return whether an option is on. Raises ConfigError."""
    text = options.get(name, "false")
    if text not in ("true", "false"):
        raise ConfigError(f"bucket {bucket}: {name} is '{text}'; it is true or false")
    return text == "true"


def _number(bucket: str, options: dict[str, str], name: str, default: float) -> float:
    """Return an option's positive number. Raises ConfigError."""
    text = options.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"bucket {bucket}: {name} is '{text}'; it is a number above 0")
    return value
