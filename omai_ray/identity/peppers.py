"""The secret that key hashes depend on, so that a stolen database alone verifies no key.

It lies in a file of lines of `<version> <hex>`; the highest version makes new keys, the others
verify older ones, which are stored anew under the highest when they are used.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import select

from omai_ray.errors import ConfigError
from omai_ray.store import Store
from omai_ray.store.tables import pepper_checks

_BYTES = 32
_CHECK = b"omai-ray pepper check"


class Peppers:
    """Peppers by version, at least one. Raises ConfigError for one that is too short.

    path: the file that they come from, where there is one.
    """

    def __init__(self, by_version: Mapping[int, bytes], path: Path | None = None) -> None:
        self._path = path
        self._by_version = _checked(by_version)

    @property
    def version(self) -> int:
        """The version that new keys are made with."""
        return max(self._by_version)

    @property
    def current(self) -> bytes:
        """The one that new keys are hashed with."""
        return self._by_version[self.version]

    def get(self, version: int) -> bytes | None:
        """Return the pepper of that version, None where it has been removed."""
        return self._by_version.get(version)

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
            version: hmac.new(pepper, _CHECK, hashlib.sha256).hexdigest()
            for version, pepper in self._by_version.items()
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


def _checked(by_version: Mapping[int, bytes]) -> dict[int, bytes]:
    if not by_version:
        raise ConfigError("pepper: there is none")
    if any(len(pepper) < _BYTES for pepper in by_version.values()):
        raise ConfigError(f"pepper: each must have at least {_BYTES} bytes")
    return dict(by_version)


def add_version(path: Path) -> int:
    """Add a pepper to the file, and return its version: new keys are made with it from now on.

    Blocking. Raises ConfigError as Peppers.load does.
    """
    by_version = _read(path)
    version = max(by_version) + 1
    by_version[version] = secrets.token_bytes(_BYTES)
    draft = _write_draft(path, by_version)
    draft.replace(path)
    _sync_directory(path.parent)
    return version


def _create(path: Path) -> None:
    """Put a complete new file in place, unless another process was first.

    A link, unlike a rename, never replaces a pepper that keys already depend on.
    """
    draft = _write_draft(path, {1: secrets.token_bytes(_BYTES)})
    try:
        path.hardlink_to(draft)
        _sync_directory(path.parent)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _write_draft(path: Path, by_version: Mapping[int, bytes]) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(f"{version} {pepper.hex()}\n" for version, pepper in by_version.items())
        file.flush()
        os.fsync(file.fileno())
    return draft


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[int, bytes]:
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        text = ""
    by_version = _parse(text, path)
    if not by_version:
        raise ConfigError(f"{path}: expected lines of '<version> <hex>'")
    return by_version


def _parse(text: str, path: Path) -> dict[int, bytes]:
    try:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        return {int(version): bytes.fromhex(pepper) for version, pepper in lines}
    except ValueError:
        raise ConfigError(f"{path}: expected lines of '<version> <hex>'") from None
