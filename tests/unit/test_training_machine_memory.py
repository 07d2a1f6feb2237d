"""Memory that a training process keeps between its steps."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from guidino_tune.training.costs import forget_peak
from guidino_tune.training.machine_memory import give_back, keep_freed_memory

def faults():
    for _ in range(20):
        torch.ones(10 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    assert keep_freed_memory()
start = faults()
print(faults() - start)
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_step_and_given_back_between_trials() -> None:
    def run(how: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    (usual, _), (kept, returned) = run("leave"), run("keep")
    # 40 MiB, above what glibc keeps by itself: twenty times anew, in pages of 4 KiB or in parts of many.
    assert usual > 20 * max(10, kept)
    assert returned > 0.9 * (40 << 20)
