"""Which files a job reads: a file, a directory searched for parquet files, or a glob."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from omai_ray.errors import ConfigError
from omai_ray.storage import Location

SUFFIXES = (".parquet", ".parq", ".pq")
_MAGIC = "*?["


@dataclass(frozen=True)
class InputFile:
    """A file or object as it was when the job was planned.

    name: relative to the input's root, with forward slashes; the output mirrors it.
    path: a local path, or a URI.
    """

    name: str
    path: str
    size: int
    mtime_ns: int


def find_files(source: str, within: Path | None = None) -> list[InputFile]:
    """Return the input's files in the order of their names.

    within: a directory in which all must lie, links resolved; else it is a ConfigError.

    Names that begin with `_` or `.` are left out of directories, as every parquet reader does.
    Raises ConfigError where there is nothing that can be read, StorageError for a store.
    """
    place = Location.parse(source)
    files = list(_local_files(place.path) if place.is_local else _objects(place))
    if not files:
        raise ConfigError(f"{source}: no parquet files here ({', '.join(SUFFIXES)})")
    if within is not None:
        for file in files:
            if not Path(file.path).resolve().is_relative_to(within):
                raise ConfigError(f"{file.path} is a link to a place that jobs may not use")
    return sorted(files, key=lambda file: file.name)


def open_parquet(place: Location, **options: Any) -> pq.ParquetFile:
    """Open a parquet file or object, with options of pyarrow's ParquetFile.

    What fails in a store is a StorageError, here and in later reads; bad content is pyarrow's.
    """
    return pq.ParquetFile(place.path if place.is_local else place.open_input(), **options)


def check_apart(source: str, output: str | os.PathLike[str] | Location) -> None:
    """Raise ConfigError where the output lies among the input's files, to be read as input."""
    place, target = Location.parse(source), Location.parse(output)
    if place.scheme != target.scheme:
        return
    if place.is_local:
        root, is_glob = _root(place.path)
        many = is_glob or Path(place.path).is_dir()  # what is not there is find_files' to refuse
        root, written = root.resolve(), target.local_path.resolve()
        inside = many and written.is_relative_to(root)
        if inside and is_glob and "**" not in place.path:  # which reaches so deep and no deeper
            pattern = Path(place.path).absolute().parts
            depth = len(pattern) - len(_before_magic(pattern))
            inside = depth > len(written.relative_to(root).parts)
    else:
        inside = PurePosixPath(target.path).is_relative_to(_fixed(place).path)
    if inside:
        raise ConfigError(f"output {output} lies inside the input {source}; choose another")


def _local_files(source: str) -> Iterator[InputFile]:
    root, paths = _expand(source)
    skip = len(str(root).rstrip("/")) + 1
    for path in paths:
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path for each of many files takes longer
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        yield InputFile(path[skip:].replace(os.sep, "/"), path, stat.st_size, stat.st_mtime_ns)


def _root(source: str) -> tuple[Path, bool]:
    """Return the directory that names are relative to, and whether the source is a glob."""
    path = Path(source).absolute()
    if path.is_dir():
        return path, False
    if path.is_file() or not any(character in source for character in _MAGIC):
        return path.parent, False
    return Path(*_before_magic(path.parts)), True


def _before_magic(parts: Sequence[str]) -> Sequence[str]:
    fixed = (i for i, part in enumerate(parts) if any(c in part for c in _MAGIC))
    return parts[: next(fixed, len(parts))]


def _expand(source: str) -> tuple[Path, list[str]]:
    root, is_glob = _root(source)
    path = Path(source).absolute()
    if is_glob:
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207
        return root, [match for match in matches if Path(match).is_file()]
    if path.is_file():
        return root, [str(path)]
    if not path.is_dir():
        raise ConfigError(f"{source}: no such file or directory")
    try:
        return root, [found for found in _walk(str(path)) if _is_parquet(found)]
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


def _walk(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(("_", ".")):
                continue
            if entry.is_dir():
                yield from _walk(entry.path)
            else:
                yield entry.path


def _is_parquet(name: str) -> bool:
    return PurePosixPath(name).suffix in SUFFIXES


def _fixed(place: Location) -> Location:
    """Return a store's place as far as it has no wildcard."""
    fixed = place
    while any(character in fixed.path.partition("/")[2] for character in _MAGIC):
        fixed = fixed.parent
    return fixed


def _objects(place: Location) -> Iterator[InputFile]:
    fixed = _fixed(place)
    if fixed == place and (stat := place.stat()) is not None:
        yield InputFile(stat.name, place.uri, stat.size, stat.mtime_ns)
        return
    pattern = place.path[len(fixed.path) + 1 :].split("/") if fixed != place else None
    for stat in fixed.list():
        parts = stat.name.split("/")
        wanted = _matches(parts, pattern) if pattern else _is_input(parts)
        if wanted and any(part in ("", ".", "..") for part in parts):
            raise ConfigError(
                f"{fixed}/{stat.name}: a key with an empty part, or one of dots, has no place in "
                "an output; rename it, or name the others by a glob"
            )
        if wanted:
            yield InputFile(stat.name, _uri(fixed.child(stat.name)), stat.size, stat.mtime_ns)


def _uri(place: Location) -> str:
    """Return an object's URI. Raises ConfigError where that is another place's: keys may have `?`s.

    What follows one could name the store that is asked, with the server's credentials.
    """
    try:
        same = Location.parse(place.uri) == place
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            f"{place}: a key with '?NAME=' in it cannot be told from options; rename it"
        )
    return place.uri


def _is_input(parts: Sequence[str]) -> bool:
    return _is_parquet(parts[-1]) and not any(part.startswith(("_", ".")) for part in parts)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Say whether a key matches, as `glob` has it: `**` is any number of parts, none hidden."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if _matches(parts, pattern[1:]):
            return True
        return bool(parts) and parts[0][:1] != "." and _matches(parts[1:], pattern)
    if not parts or (parts[0][:1] == "." and pattern[0][:1] != "."):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
