"""Removing what nobody needs any more, from time to time."""

from __future__ import annotations

import asyncio
import logging

from omai_ray.errors import OMAiError
from omai_ray.files.files import Files

EVERY_S = 60.0
ORPHANS_EVERY = 60
_log = logging.getLogger(__name__)


async def sweep(files: Files, every_s: float = EVERY_S) -> None:
    """Remove expired files each `every_s`, and content without a row each 60th time; never ends.

    Several processes may do so: what one finds removed is removed.
    """
    rounds = 0
    while True:
        try:
            if expired := await files.remove_expired():
                _log.info("%d files have expired", expired)
            if rounds % ORPHANS_EVERY == 0 and (orphans := await files.remove_orphans()):
                _log.info("content of %d files that there are not was removed", orphans)
        except OMAiError as error:
            _log.warning("files were not swept: %s", error.message)
        except Exception:  # the next round may find it passed
            _log.exception("files were not swept")
        rounds += 1
        await asyncio.sleep(every_s)
