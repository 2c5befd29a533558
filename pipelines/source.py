"""Which files a job reads: a file, a directory searched for parquet files, or a glob."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from omai_ray.errors import ConfigError

SUFFIXES = (".parquet", ".parq", ".pq")
_MAGIC = "*?["


@dataclass(frozen=True)
class InputFile:
    """A file as it was when the job was planned.

    name: relative to the input's root, with forward slashes; the output mirrors it.
    """

    name: str
    path: str
    size: int
    mtime_ns: int


def find_files(source: str) -> list[InputFile]:
    """Return the input's files in the order of their names.

    Names that begin with `_` or `.` are left out of directories, as every parquet reader does.
    Raises ConfigError where there is nothing that can be read.
    """
    root, paths = _expand(source)
    files = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        name = path.relative_to(root).as_posix()
        files.append(InputFile(name, str(path), stat.st_size, stat.st_mtime_ns))
    if not files:
        raise ConfigError(f"{source}: no parquet files here ({', '.join(SUFFIXES)})")
    return sorted(files, key=lambda file: file.name)


def check_apart(source: str, output: Path) -> None:
    """Raise ConfigError where the output lies among the input's files, to be read as input."""
    root, is_glob = _root(source)
    many = is_glob or Path(source).is_dir()  # what is not there is find_files' to refuse
    if many and output.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"output {output} lies inside the input {source}; choose another")


def _root(source: str) -> tuple[Path, bool]:
    """Return the directory that names are relative to, and whether the source is a glob."""
    path = Path(source).absolute()
    if path.is_dir():
        return path, False
    if path.is_file() or not any(character in source for character in _MAGIC):
        return path.parent, False
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in _MAGIC))
    return Path(*parts[:fixed]), True


def _expand(source: str) -> tuple[Path, list[Path]]:
    root, is_glob = _root(source)
    path = Path(source).absolute()
    if is_glob:
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
        return root, [match for match in matches if match.is_file()]
    if path.is_file():
        return root, [path]
    if not path.is_dir():
        raise ConfigError(f"{source}: no such file or directory")
    try:
        return root, [p for p in _walk(path) if p.suffix in SUFFIXES]
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


def _walk(directory: Path) -> list[Path]:
    found: list[Path] = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(("_", ".")):
            continue
        found += _walk(path) if path.is_dir() else [path]
    return found
