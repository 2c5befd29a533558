"""What files are called: by their owners, and by the platform."""

from __future__ import annotations

import re
import secrets

from omai_ray.errors import InvalidRequest

NAME_LENGTH = 255
_ID = re.compile(r"file-[0-9a-f]{31}", re.ASCII)


def file_id(created: float) -> str:
    """Return a new id. Ids sort as their files were made, in any database's collation."""
    return f"file-{round(created * 1000):011x}{secrets.token_hex(10)}"


def is_file_id(text: str) -> bool:
    """Whether a text could be a file's id: then it is safe as a name in storage, and in SQL."""
    return _ID.fullmatch(text) is not None


def file_name(given: str) -> str:
    """Return what a file is called by its owner: one line, no path. It never names anything here.

    Raises InvalidRequest for one of which nothing is left, or that is too long.
    """
    name = re.split(r"[/\\]", given)[-1]
    name = "".join(c for c in name if c.isprintable()).strip()
    if name in ("", ".", ".."):
        raise InvalidRequest("Invalid 'file': its filename is empty.", param="file")
    if len(name) > NAME_LENGTH:
        raise InvalidRequest(
            f"Invalid 'file': its filename has {len(name)} characters, at most {NAME_LENGTH} are "
            "accepted.",
            param="file",
        )
    return name
