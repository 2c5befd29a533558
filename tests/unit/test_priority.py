from __future__ import annotations

import os
import subprocess
import sys

import pytest

from omai_ray.priority import NICENESS_VARIABLE, computing_niceness
from tests.programs import niceness

PROGRAM = """
import os, threading
from omai_ray.priority import give_way_to_servers
waiting = threading.Event()
threading.Thread(target=waiting.wait, daemon=True).start()
give_way_to_servers()
threading.Thread(target=waiting.wait, daemon=True).start()
threads = map(int, os.listdir("/proc/self/task"))
print(sorted(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only processes have a priority")
@pytest.mark.parametrize(("computing", "bulk"), [("10", 19), ("15", 19), ("1", 10)])
def test_all_threads_of_a_process_give_way_to_servers(computing: str, bulk: int) -> None:
    """Those that were there before, and those that come after; more than a server's threads do."""
    bulk = min(19, niceness() + bulk)
    environment = {**os.environ, NICENESS_VARIABLE: computing}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == f"{[bulk, bulk, bulk]}\n"


@pytest.mark.parametrize("given", ["abc", "", "-1", "20", "1.5"])
def test_a_niceness_that_cannot_be_is_refused_by_name(given: str) -> None:
    """With the value, and what is allowed."""
    with pytest.raises(ValueError, match=f"OMAI_COMPUTE_NICENESS: '{given}'; .* 0 to 19"):
        computing_niceness({NICENESS_VARIABLE: given})
    assert [computing_niceness({}), computing_niceness({NICENESS_VARIABLE: "0"})] == [10, 0]
