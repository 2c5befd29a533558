"""The secret that key hashes depend on, so that a stolen database alone verifies no key.

It lies in a file of lines of `<version> <hex> [from]`. The highest version whose time (seconds
since the epoch) has come makes new keys; the others verify older ones, which are stored anew under
it when they are used. A version is added ahead of its time, so that every node has it by then.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from omai_ray.errors import ConfigError
from omai_ray.store import Store
from omai_ray.store.tables import pepper_checks

_BYTES = 32
_CHECK = b"omai-ray pepper check"
_FORM = "expected lines of '<version> <hex> [from]'"


@dataclass(frozen=True, slots=True)
class Pepper:
    """A pepper, and from when it is used; seconds since the epoch."""

    secret: bytes
    from_s: float = 0.0


class Peppers:
    """Peppers by version, at least one. Raises ConfigError for one that is too short.

    path: the file that they come from, where there is one.
    """

    def __init__(
        self,
        by_version: Mapping[int, bytes | Pepper],
        path: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._clock = clock
        self._by_version = _checked(by_version)

    @property
    def version(self) -> int:
        """The version that new keys are made with."""
        now_s = self._clock()
        used = [version for version, kept in self._by_version.items() if kept.from_s <= now_s]
        return max(used, default=min(self._by_version))

    @property
    def current(self) -> bytes:
        """The one that new keys are hashed with."""
        return self._by_version[self.version].secret

    def get(self, version: int) -> bytes | None:
        """Return the pepper of that version, None where it has been removed."""
        kept = self._by_version.get(version)
        return kept.secret if kept else None

    @classmethod
    def load(cls, path: Path) -> Peppers:
        """Read the pepper file, creating it (0600) on first use; all processes get the same one.

        Blocking. Raises ConfigError where it cannot be read or understood.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _create(path)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        return cls(_read(path), path)

    def reload(self) -> None:
        """Read the file again: a version may have been added. Blocking, errors as load's."""
        if self._path is not None:
            self._by_version = _checked(_read(self._path))

    async def check(self, store: Store) -> None:
        """Raise ConfigError where a version is not the one that the database's keys depend on.

        A version that the database has not seen is noted there.
        """
        macs = {
            version: hmac.new(kept.secret, _CHECK, hashlib.sha256).hexdigest()
            for version, kept in self._by_version.items()
        }
        rows = [{"version": version, "mac": mac} for version, mac in macs.items()]
        statement = select(pepper_checks.c.version, pepper_checks.c.mac)
        async with store.reading() as connection:
            known = {row.version: row.mac for row in await connection.execute(statement)}
        if not macs.keys() <= known.keys():
            async with store.writing() as connection:
                await connection.execute(store.insert_new(pepper_checks), rows)
                known = {row.version: row.mac for row in await connection.execute(statement)}
        wrong = [version for version, mac in macs.items() if known[version] != mac]
        if wrong:
            raise ConfigError(
                f"{self._path}: version {wrong[0]} is not the pepper that this database's keys "
                "were made with: put the right file there (see pepper_file)"
            )


def _checked(by_version: Mapping[int, bytes | Pepper]) -> dict[int, Pepper]:
    checked = {
        version: Pepper(kept) if isinstance(kept, bytes) else kept
        for version, kept in by_version.items()
    }
    if not checked:
        raise ConfigError("pepper: there is none")
    if any(len(kept.secret) < _BYTES for kept in checked.values()):
        raise ConfigError(f"pepper: each must have at least {_BYTES} bytes")
    return checked


def add_version(path: Path, from_s: float) -> int:
    """Add a pepper to the file, and return its version: keys are made with it from that time on.

    Blocking. Raises ConfigError as Peppers.load does.
    """
    by_version = _read(path)
    version = max(by_version) + 1
    by_version[version] = Pepper(secrets.token_bytes(_BYTES), from_s)
    draft = _write_draft(path, by_version)
    draft.replace(path)
    _sync_directory(path.parent)
    return version


def _create(path: Path) -> None:
    """Put a complete new file in place, unless another process was first.

    A link, unlike a rename, never replaces a pepper that keys already depend on.
    """
    draft = _write_draft(path, {1: Pepper(secrets.token_bytes(_BYTES))})
    try:
        path.hardlink_to(draft)
        _sync_directory(path.parent)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _write_draft(path: Path, by_version: Mapping[int, Pepper]) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        for version, kept in by_version.items():
            from_s = f" {int(kept.from_s)}" if kept.from_s else ""
            file.write(f"{version} {kept.secret.hex()}{from_s}\n")
        file.flush()
        os.fsync(file.fileno())
    return draft


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[int, Pepper]:
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        text = ""
    by_version = _parse(text, path)
    if not by_version:
        raise ConfigError(f"{path}: {_FORM}")
    return by_version


def _parse(text: str, path: Path) -> dict[int, Pepper]:
    try:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        return {
            int(version): Pepper(bytes.fromhex(secret), *map(float, from_s))
            for version, secret, *from_s in lines
        }
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: {_FORM}") from None
