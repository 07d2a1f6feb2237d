"""What a command and everything that it starts take: wall clock, CPU time, and the most memory at a time. Linux only."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

EVERY = 0.25
"""Seconds between two looks."""

_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds from the start to the exit, seconds of CPU of all processes, and megabytes (PSS: shared pages count once) at the worst."""

    wall: float
    cpu: float
    memory: float


class Tree:
    """Looks at this process's descendants, without itself; what loses its parent stays among them."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        self._cpu: dict[tuple[int, str], float] = {}
        self.memory = 0.0

    @property
    def cpu(self) -> float:
        """Seconds of all that were seen, until they were last seen."""
        return sum(self._cpu.values())

    def look(self) -> None:
        """Now."""
        together = 0.0
        for pid in _below(os.getpid()):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._cpu[pid, fields[19]] = (int(fields[11]) + int(fields[12])) / _TICKS
                share = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
                together += int(share[1]) * 1024 / 1e6 if share else 0.0
            except OSError:  # it has just ended
                continue
        self.memory = max(self.memory, together)


def _below(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []
    return [*children, *(found for child in children for found in _below(child))]


def run(
    commands: Sequence[Sequence[str]], *, side_by_side: int = 1, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Taken:
    """Runs commands, so many at a time, and measures all of them together.

    Raises:
        RuntimeError: One of them failed; with the end of what it printed.
    """
    tree, start, waiting, running = Tree(), time.perf_counter(), list(commands), list[tuple[subprocess.Popen[bytes], IO[bytes]]]()
    while waiting or running:
        while waiting and len(running) < side_by_side:
            output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed below
            running.append((subprocess.Popen(waiting.pop(0), stdout=output, stderr=output, env=environment, cwd=folder), output))
        tree.look()
        for process, printed in [pair for pair in running if pair[0].poll() is not None]:
            running.remove((process, printed))
            with printed:
                printed.seek(0)
                if process.returncode:
                    raise RuntimeError(printed.read().decode(errors="replace")[-3000:])
        time.sleep(EVERY if running else 0)
    return Taken(time.perf_counter() - start, tree.cpu, tree.memory)
