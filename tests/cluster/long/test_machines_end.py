"""Machines end with the process that made them, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import machines
import pytest

pytestmark = pytest.mark.skipif(bool(why := machines.missing()), reason=why)

MAKER = """
import sys, time
from pathlib import Path
from machines import machines

with machines() as make:
    print(make(39, Path(sys.argv[1])).pid, flush=True)
    time.sleep(60)
"""


def test_machines_of_killed_tests_are_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    maker = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(machines.__file__).parent, text=True)
    assert maker.stdout is not None
    machine = Path("/proc") / maker.stdout.readline().strip()
    assert machine.exists()
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    machines.until(lambda: not machine.exists(), 10, "the end of the machine")
    with machines.machines() as make:
        assert make(39, tmp_path / "again").run("hostname") == "gdtnode39\n"
