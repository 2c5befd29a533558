"""Where jobs may read and write: places that the operator lists, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omai_ray.errors import ConfigError, InvalidRequest
from omai_ray.storage import Location

ACCOUNT = "{account}"
_WILD = "*?["


class AllowedLocations:
    """Paths, `s3://` and `gs://` prefixes; `{account}` in one stands for the account's id.

    Raises ConfigError for an entry that is none of them.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries = tuple(entries)
        for entry in entries:
            try:
                Location.parse(entry)
            except ConfigError as error:
                raise ConfigError(f"embedding_jobs.locations: {error.message}") from None

    def resolve(self, field: str, given: str, account_id: str) -> tuple[Location, Location]:
        """Return what a request's location is, and the entry within which it lies.

        A local one is returned with its links resolved, one in a store with the entry's options.
        Looks at the disk, below an entry alone. Raises InvalidRequest, which names the field and
        what there is, and nothing of where links lead.
        """
        place = _parse(field, given)
        entries = [Location.parse(entry.replace(ACCOUNT, account_id)) for entry in self._entries]
        within = [entry for entry in entries if _lies_within(place, entry)]
        if not place.is_local:
            for entry in within:
                return Location(place.scheme, place.path, entry.options), entry
        elif within and (real := _real(place)) is not None:
            for entry in filter(None, map(_real, (e for e in entries if e.is_local))):
                if _lies_within(real, entry):
                    return real, entry
        listed = ", ".join(str(entry) for entry in entries) or "none"
        raise _refused(
            field,
            f"jobs may not use '{place}'. Allowed locations: {listed}",
            "location_not_allowed",
        )


def _parse(field: str, given: str) -> Location:
    scheme, colon, rest = ("", "", given) if given.startswith("/") else given.partition("://")
    path = rest if colon else given
    if not given.isprintable() or (not colon and not given.startswith("/")):
        raise _refused(field, "expected s3://BUCKET/KEY, gs://BUCKET/KEY or an absolute path")
    if colon and scheme.lower() == "file":
        raise _refused(field, "'file' is not a scheme of jobs' locations; write the path alone")
    wild = next((character for character in _WILD if character in path), None)
    if wild is not None:
        raise _refused(field, f"'{wild}' has no place in a location: name a file or a directory")
    parts = path.rstrip("/").split("/")[0 if colon else 1 :]
    if any(part in ("", ".", "..") for part in parts):
        raise _refused(field, "a location has no empty part, and none that is '.' or '..'")
    try:
        return Location.parse(given)
    except ConfigError as error:
        raise _refused(field, error.message) from None


def _real(place: Location) -> Location | None:
    """Return a local place with its links resolved; None where they lead nowhere."""
    try:
        return Location("file", str(Path(place.path).resolve()))
    except (RuntimeError, OSError):  # a loop, a name that is too long
        return None


def _lies_within(place: Location, entry: Location) -> bool:
    below = place.path == entry.path or place.path.startswith(entry.path.rstrip("/") + "/")
    return place.scheme == entry.scheme and below


def _refused(field: str, why: str, code: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{field}': {why}.", param=field, code=code)
