"""The content of files: one object each, under the file's id, in a directory or a bucket."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import NativeFile, fs

from omai_ray.errors import InsufficientStorage, OMAiError, Overloaded

CHUNK_BYTES = 1024 * 1024
_THREADS = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Contents:
    """Where content is kept. Every access is made in a thread of its own pool.

    Methods raise Overloaded where the storage is away, and InsufficientStorage where it is full.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str) -> None:
        self.filesystem = filesystem
        self.root = root
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")

    @classmethod
    def at(cls, location: str) -> Contents:
        """Return those of a directory, which is made, or of `s3://BUCKET/…`. Raises ConfigError."""
        if "://" in location:
            return cls(*fs.FileSystem.from_uri(location))
        Path(location).mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(fs.LocalFileSystem(), location)

    def path(self, file: str) -> str:
        """Return where the content of a file is, in `filesystem`."""
        return f"{self.root}/{file}"

    def draft(self, file: str) -> Draft:
        """Return the content of a new file, to be written."""
        return Draft(self, file)

    async def open(self, file: str) -> Content:
        """Return a file's content, open for reading. Raises FileNotFoundError."""
        opened = await self.run(self.filesystem.open_input_file, self.path(file))
        return Content(self, opened, await self.run(opened.size))

    async def delete(self, file: str) -> None:
        """Remove a file's content, if it is there."""
        try:
            await self.run(self.filesystem.delete_file, self.path(file))
        except FileNotFoundError:
            return

    async def names_before(self, before: float) -> list[str]:
        """Return the names of all content last written before a time, in seconds of the epoch."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        infos = await self.run(self.filesystem.get_file_info, selector)
        return [i.base_name for i in infos if i.is_file and i.mtime_ns < before * 1e9]

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Return what blocking work does, in a thread. Errors of storage become the platform's."""
        with _translated():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        """End the threads, once they are done with what they are at."""
        self._threads.shutdown(cancel_futures=True)


class Draft:
    """Content that is being written; nobody knows of it before its file's row.

    Only one method may run at a time; one that was cancelled ends before the next begins.
    """

    def __init__(self, contents: Contents, file: str) -> None:
        self._contents = contents
        self._file = file
        self._stream: NativeFile | None = None
        self._waiting = bytearray()
        self._running: asyncio.Task[Any] | None = None

    async def write(self, data: bytes) -> None:
        """Add to it."""
        self._waiting += data
        if len(self._waiting) >= CHUNK_BYTES:
            await self._run(self._flush)

    async def complete(self) -> None:
        """Return once all of it is durable."""
        await self._run(self._flush)
        await self._run(self._close)

    async def discard(self) -> None:
        """Remove what was written. Storage that is away keeps it, to be swept."""
        try:
            await self._run(self._remove)
        except OMAiError as error:
            _log.warning("the content of %s is left to be swept: %s", self._file, error.message)

    async def _run(self, work: Callable[[], None]) -> None:
        if self._running is not None and not self._running.done():
            await asyncio.wait({self._running})
        self._running = asyncio.create_task(self._contents.run(work))
        await asyncio.shield(self._running)

    def _flush(self) -> None:
        if self._stream is None:
            path = self._contents.path(self._file)
            self._stream = self._contents.filesystem.open_output_stream(path)
        self._stream.write(bytes(self._waiting))
        self._waiting.clear()

    def _close(self) -> None:
        if self._stream is None:
            return
        self._stream.close()
        if isinstance(self._contents.filesystem, fs.LocalFileSystem):
            _sync(Path(self._contents.path(self._file)))
            _sync(Path(self._contents.root))

    def _remove(self) -> None:
        if self._stream is None:
            return
        with suppress(OSError):  # what could not be written may well not be closed either
            self._stream.close()
        with suppress(FileNotFoundError):
            self._contents.filesystem.delete_file(self._contents.path(self._file))


class Content:
    """A file's content, open for reading."""

    def __init__(self, contents: Contents, opened: NativeFile, size: int) -> None:
        self.size = size
        self._contents = contents
        self._opened = opened

    async def chunks(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Give the bytes from `start` up to `stop`, or the end, a chunk at a time."""
        stop = self.size if stop is None else stop
        while start < stop:
            size = min(CHUNK_BYTES, stop - start)
            data = await self._contents.run(self._opened.read_at, size, start)
            if not data:
                return
            start += len(data)
            yield data

    async def close(self) -> None:
        """Let go of it."""
        await self._contents.run(self._opened.close)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn storage's errors into ours. Clients see no paths; the log sees the cause."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        _log.error("storage of files: %s: %s", type(error).__name__, error)
        if error.errno in _FULL:
            raise InsufficientStorage("The server has no room left for files.") from None
        raise Overloaded(
            "The server is temporarily unable to reach its storage of files. Please try again."
        ) from None
