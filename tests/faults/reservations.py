"""Prints when each reservation was made that a platform's limiter still holds.

`python -m tests.faults.reservations STATE_DIR`: seconds since the epoch, as JSON. It is a program
of its own because Ray reads where its token is when it is imported.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
from pathlib import Path

from omai_ray.quota.buckets import RESERVATION_TTL_S


def main(state_dir: str) -> None:
    """Read the limiter's last snapshot from the cluster's key-value store."""
    cluster = json.loads((Path(state_dir) / "cluster.json").read_text())
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": cluster["token_file"]}
    import ray

    from deployments.detached import kept
    from deployments.limiter import actor_name

    ray.init(address=cluster["ray"], log_to_driver=False, logging_level=logging.ERROR)
    snapshot = kept(f"{actor_name(0)}-snapshot".encode())
    ray.shutdown()
    assert snapshot is not None, "the limiter has written nothing yet"
    _, wall_s, now_s, (_, running, _) = pickle.loads(snapshot)
    made = [wall_s - RESERVATION_TTL_S + expires_s - now_s for _, expires_s in running.values()]
    sys.stdout.write(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
