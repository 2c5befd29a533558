"""Files that accounts upload and batches leave: rows in SQL, content in a directory or bucket."""

from __future__ import annotations

from omai_ray.files.contents import Content, Contents
from omai_ray.files.files import MAX_LIFE_S, MAX_PAGE, MIN_LIFE_S, Files
from omai_ray.files.sweep import sweep
from omai_ray.files.uploads import Upload

__all__ = [
    "MAX_LIFE_S",
    "MAX_PAGE",
    "MIN_LIFE_S",
    "Content",
    "Contents",
    "Files",
    "Upload",
    "sweep",
]
