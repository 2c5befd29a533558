"""The content of files: one object each, under the file's id, in a directory or a bucket."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from omai_ray.errors import ConfigError, InsufficientStorage, OMAiError, Overloaded
from omai_ray.storage import Input, Location, ObjectNotFound, Output, StorageError

CHUNK_BYTES = 1024 * 1024
_THREADS = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Contents:
    """Where content is kept. Every access is made in a thread of its own pool.

    Methods raise Overloaded where the storage is away, and InsufficientStorage where it is full.
    """

    def __init__(self, root: Location) -> None:
        self.root = root
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")

    @classmethod
    def at(cls, place: str) -> Contents:
        """Return those of a directory, which is made, or of a URI. Raises ConfigError."""
        root = Location.parse(place)
        if root.is_local:
            try:
                root.local_path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"files.location: {root}: {error.strerror or error}") from None
        return cls(root)

    def location(self, file: str) -> Location:
        """Return where the content of a file is."""
        return self.root.child(file)

    def draft(self, file: str) -> Draft:
        """Return the content of a new file, to be written."""
        return Draft(self, file)

    async def open(self, file: str) -> Content:
        """Return a file's content, open for reading. Raises ObjectNotFound."""
        return Content(self, await self.run(self.location(file).open_input))

    async def delete(self, file: str) -> None:
        """Remove a file's content, if it is there."""
        await self.run(self.location(file).delete)

    async def names_before(self, before: float) -> list[str]:
        """Return the names of all content last written before a time, in seconds of the epoch."""
        stats = await self.run(lambda: self.root.list(recursive=False))
        return [stat.name for stat in stats if stat.mtime_ns < before * 1e9]

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Return what blocking work does, in a thread. Clients see no places; the log does."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        except ObjectNotFound:
            raise
        except StorageError as error:
            _log.error("files: %s", error.message)
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
                raise InsufficientStorage("The server has no room left for files.") from None
            raise _away() from None

    def close(self) -> None:
        """End the threads, once they are done with what they are at."""
        self._threads.shutdown(cancel_futures=True)


def _away() -> Overloaded:
    return Overloaded(
        "The server is temporarily unable to reach its storage of files. Please try again."
    )


class _Turn:
    """Does one thing at a time: what was cancelled goes on in its thread, and is waited for."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._running: asyncio.Task[Any] | None = None

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Return what blocking work does, once nothing else is done."""
        if self._running is not None and not self._running.done():
            await asyncio.wait({self._running})
        running = asyncio.create_task(self._contents.run(work, *args))
        self._running = running
        return await asyncio.shield(running)


class Draft:
    """Content that is being written; nobody knows of it before its file's row.

    Methods raise as those of Contents do: where its place is gone, storage is away.
    """

    def __init__(self, contents: Contents, file: str) -> None:
        self._location = contents.location(file)
        self._turn = _Turn(contents)
        self._output: Output | None = None
        self._waiting = bytearray()

    async def write(self, data: bytes) -> None:
        """Add to it."""
        self._waiting += data
        if len(self._waiting) >= CHUNK_BYTES:
            await self._run(self._flush)

    async def complete(self) -> None:
        """Return once all of it is durable."""
        await self._run(self._complete)

    async def discard(self) -> None:
        """Remove what was written. Storage that is away keeps it, to be swept."""
        try:
            await self._turn.run(self._remove)
        except OMAiError as error:
            _log.warning("%s is left to be swept: %s", self._location, error.message)

    async def _run(self, work: Callable[[], object]) -> None:
        try:
            await self._turn.run(work)
        except ObjectNotFound as error:
            _log.error("files: %s", error.message)
            raise _away() from None

    def _flush(self) -> Output:
        if self._output is None:
            self._output = self._location.open_output()
        self._output.write(bytes(self._waiting))
        self._waiting.clear()
        return self._output

    def _complete(self) -> None:
        self._flush().close()

    def _remove(self) -> None:
        if self._output is not None:
            self._output.discard()


class Content:
    """A file's content, open for reading."""

    def __init__(self, contents: Contents, opened: Input) -> None:
        self.size = opened.size
        self._turn = _Turn(contents)
        self._opened = opened

    async def chunks(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Give the bytes from `start` up to `stop`, or the end, a chunk at a time."""
        stop = self.size if stop is None else stop
        while start < stop:
            data = await self._turn.run(self._read, start, min(CHUNK_BYTES, stop - start))
            if not data:
                return
            start += len(data)
            yield data

    async def close(self) -> None:
        """Let go of it."""
        await self._turn.run(self._opened.close)

    def _read(self, start: int, size: int) -> bytes:
        self._opened.seek(start)
        return self._opened.read(size)
