"""The end of a connection to Ray, while other threads of the process go on."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import gc
import ray
from guidino_tune.config import Resources
from guidino_tune.running import connection

def shutdown():
    print("collects:", gc.isenabled())
    shut_down()

shut_down, ray.shutdown = ray.shutdown, shutdown
with connection.connected(Resources()):
    print("collects:", gc.isenabled())
print("collects:", gc.isenabled())
"""


def test_no_thread_gives_up_objects_while_ray_shuts_down() -> None:
    """That ends the process with code 1, before a search has told its result; whichever thread collects cycles gives up what is in them."""
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "RAY_ADDRESS": "local"}
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.splitlines() == ["collects: True", "collects: False", "collects: True"]
