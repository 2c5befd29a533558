"""Be the only run at work in an output: a lock on a local disk, a claim in an object store.

A claim is an object that its holder writes again and again. A runner first writes its own, then
lists all: lists show what was written before, so of two that start together at least one sees the
other, and whoever sees another's live claim takes its own back. Ages are by the store's clock
alone. A claim that its holder no longer refreshes ends after CLAIM_S, and is swept by the next.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from omai_ray.errors import ConfigError
from omai_ray.storage import Location, Stat, StorageError
from pipelines.errors import OutputInUse, OutputMismatch, RunFailed

RUN = "_run"
MANIFEST = f"{RUN}/manifest.json"
CLAIM_S = 60.0
REFRESH_S = CLAIM_S / 4


class Lease:
    """A held output."""

    @property
    def claim(self) -> Location | None:
        """Return what shows to workers elsewhere that it is held; None where a lock does."""
        return None

    def check(self) -> None:
        """Raise RunFailed where the output is no longer this run's."""


class Claim(Lease):
    """A lease by an object in the output's store.

    clock: seconds that never go back, to tell that this process overslept.
    """

    def __init__(self, output: Location, clock: Callable[[], float] = time.monotonic) -> None:
        self._output, self._clock = output, clock
        self._claims = output.child(f"{RUN}/claims")
        self._claim = self._claims.child(uuid4().hex)
        self._lost = False
        self._refreshed_s = clock()

    @property
    def claim(self) -> Location:
        """Return the object."""
        return self._claim

    def acquire(self) -> None:
        """Claim the output. Raises OutputInUse naming who has it."""
        self._write()
        claims = self._list()
        own = claims.get(self.claim.name)
        now_ns = own.mtime_ns if own else 0
        others = [claim for name, claim in claims.items() if name != self.claim.name]
        for other in others:
            if now_ns - other.mtime_ns > CLAIM_S * 1e9:
                self._claims.child(other.name).delete()
                continue
            holder = self._holder(other)
            self.release()
            raise OutputInUse(
                f"output {self._output} is in use by another run ({holder}); wait for it to end; "
                f"if it was killed, its claim ends within {CLAIM_S:.0f} s"
            )

    def refresh(self) -> None:
        """Show that the run is alive, unless it was taken for dead: then it has lost the output.

        A store that does not answer is tried again at the next turn, while the claim lasts.
        """
        began_s = self._clock()
        try:
            if began_s - self._refreshed_s > CLAIM_S or self.claim.stat() is None:
                self._lost = True
            else:
                self._write()
                self._refreshed_s = began_s
        except StorageError:
            return

    def check(self) -> None:
        """Raise RunFailed where the claim has ended."""
        if self._lost or self._clock() - self._refreshed_s > CLAIM_S:
            raise RunFailed(
                f"output {self._output} is no longer this run's: its claim was not refreshed for "
                f"{CLAIM_S:.0f} s, or was taken. The same command resumes"
            )

    def release(self) -> None:
        """Let the next run have the output; where the store fails, once the claim has ended."""
        with suppress(StorageError):
            self.claim.delete()

    def _write(self) -> None:
        self.claim.write_bytes(_holder().encode())

    def _list(self) -> dict[str, Stat]:
        return {claim.name: claim for claim in self._claims.list(recursive=False)}

    def _holder(self, other: Stat) -> str:
        try:
            return self._claims.child(other.name).read_bytes().decode(errors="replace").strip()
        except StorageError:
            return "unknown"


@contextmanager
def lease(output: str | os.PathLike[str] | Location) -> Iterator[Lease]:
    """Be the only process at work in an output directory, which is made if need be.

    Raises OutputInUse naming the holder, OutputMismatch for a directory with other content,
    ConfigError for one that cannot be made.
    """
    place = Location.parse(output)
    check_ours(place)
    with _lock(place) if place.is_local else _claim(place) as held:
        yield held


@contextmanager
def _lock(output: Location) -> Iterator[Lease]:
    """Hold the kernel's lock, which ends with the process, however that dies."""
    path = output.local_path / RUN / "lease"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"output {output}: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            raise OutputInUse(
                f"output {output} is in use by another run ({holder}); wait for it to end"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _holder().encode())
        yield Lease()
    finally:
        os.close(descriptor)


@contextmanager
def _claim(output: Location) -> Iterator[Lease]:
    claim, ended = Claim(output), threading.Event()
    claim.acquire()

    def keep() -> None:
        while not ended.wait(REFRESH_S):
            claim.refresh()

    thread = threading.Thread(target=keep, name="claim", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        ended.set()
        thread.join()
        claim.release()


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def check_ours(output: Location) -> None:
    """Raise ConfigError for what is no directory, OutputMismatch for one with other content."""
    if output.is_local and output.local_path.exists() and not output.local_path.is_dir():
        raise ConfigError(f"output {output} is not a directory")
    if output.child(MANIFEST).exists():
        return
    foreign = [name for name in _top_level(output) if name != RUN]
    if foreign:
        raise OutputMismatch(
            f"output {output} holds files that no run of this kind wrote ({foreign[0]}); "
            "choose an empty directory, or one that does not exist"
        )


def _top_level(output: Location) -> list[str]:
    """Return the names in a directory that are files, or that there are files below.

    Directories alone are what a run leaves of an input's tree that it cleared.
    """
    if not output.is_local:
        return sorted({stat.name.partition("/")[0] for stat in output.list()})
    path = output.local_path
    found = path.iterdir() if path.is_dir() else ()
    return sorted(entry.name for entry in found if _has_files(entry))


def _has_files(path: Path) -> bool:
    return not path.is_dir() or any(files for _, _, files in os.walk(path))
