"""The secret that key hashes depend on, so that a stolen database alone verifies no key.

It lies in the state directory as lines of `<version> <hex>`; the highest version makes new keys,
the others verify older ones.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from omai_ray.errors import ConfigError

FILE_NAME = "pepper"
_BYTES = 32


class Peppers:
    """Peppers by version, at least one. Raises ConfigError for one that is too short."""

    def __init__(self, by_version: Mapping[int, bytes]) -> None:
        if not by_version:
            raise ConfigError("pepper: there is none")
        if any(len(pepper) < _BYTES for pepper in by_version.values()):
            raise ConfigError(f"pepper: each must have at least {_BYTES} bytes")
        self._by_version = dict(by_version)
        self.version = max(by_version)

    @property
    def current(self) -> bytes:
        """The one that new keys are hashed with."""
        return self._by_version[self.version]

    def get(self, version: int) -> bytes | None:
        """Return the pepper of that version, None where it has been removed."""
        return self._by_version.get(version)

    @classmethod
    def load(cls, state_dir: Path) -> Peppers:
        """Read the pepper file, creating it (0600) on first use; all processes get the same one.

        Blocking. Raises ConfigError where it cannot be read or understood.
        """
        path = state_dir / FILE_NAME
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _create(path)
            text = path.read_text(encoding="ascii")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            text = ""
        return cls(_parse(text, path))


def _create(path: Path) -> None:
    """Put a complete new file in place, unless another process was first.

    A link, unlike a rename, never replaces a pepper that keys already depend on.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"1 {secrets.token_hex(_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
        _sync_directory(path.parent)
    finally:
        draft.unlink()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(text: str, path: Path) -> dict[int, bytes]:
    try:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        return {int(version): bytes.fromhex(pepper) for version, pepper in lines}
    except ValueError:
        raise ConfigError(f"{path}: expected lines of '<version> <hex>'") from None
