"""Files that accounts upload and batches leave: rows in SQL, content in a directory or bucket."""

from __future__ import annotations

from omai_ray.files.contents import Content, Contents
from omai_ray.files.files import Files
from omai_ray.files.uploads import Upload

__all__ = ["Content", "Contents", "Files", "Upload"]
