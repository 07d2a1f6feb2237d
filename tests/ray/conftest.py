"""One Ray cluster for all tests here.

Only one cluster may be on a machine: the tests share this one, and the commands that they start join it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from guidino_tune.running import prepare_environment
from guidino_tune.running.inspection import known_cluster


def start_cluster() -> str:
    """Starts the cluster that the tests share, and connects this process with it; gives its address."""
    prepare_environment()
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init("local", num_cpus=2, include_dashboard=True, log_to_driver=False)  # whatever a killed cluster left behind
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    # With a named address Ray uses the machine's token only when told to; the first ``init`` may have made it.
    prepare_environment()
    return os.environ["RAY_ADDRESS"]


def stop_cluster() -> None:
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def _shared_cluster(shared_views: None) -> Iterator[None]:
    start_cluster()
    yield
    stop_cluster()


@pytest.fixture
def cluster() -> str:
    """Address of the shared cluster; ``RAY_ADDRESS`` leads every command here to it."""
    return os.environ["RAY_ADDRESS"]


ADDRESS = "127.0.0.1:6391"
"""Of a cluster that a test has for itself."""


@pytest.fixture(scope="module")
def no_cluster() -> Iterator[None]:
    """The shared cluster is away during the tests of a file: only one may be on a machine."""
    stop_cluster()
    yield
    known_cluster({})  # the note of one that is gone: what cleans up after Ray Train trials would ask it, and stay for ever
    start_cluster()


@pytest.fixture
def head(no_cluster: None, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Starts the head of a cluster of the test's own, with options and variables of ``ray start`` or of another command that is like it."""
    started: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "head.txt"

    def start(*options: str, command: Sequence[str] = (), **environment: str) -> None:
        line = [*(command or (str(Path(sys.executable).with_name("ray")), "start", "--head"))]
        line += ["--block", "--node-ip-address=127.0.0.1", f"--port={ADDRESS.rpartition(':')[2]}", "--object-store-memory=100000000"]
        with log.open("w") as file:
            started.append(subprocess.Popen([*line, *options], stdout=file, stderr=file, env=os.environ | environment))
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert started[-1].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        os.environ["RAY_ADDRESS"] = ADDRESS

    try:
        yield start
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        for process in started:
            end(process)


def below(pid: int) -> list[int]:
    """A process and all those that it and they have started."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())  # a search starts its Ray in a thread
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(found for child in children for found in below(child))]


def raylets(pid: int) -> list[int]:
    """The raylets below a process."""
    return [found for found in below(pid) if Path(f"/proc/{found}/comm").read_text().strip() == "raylet"]


def end(process: subprocess.Popen[bytes], started: Sequence[int] = ()) -> None:
    """Ends a node or a head, and what outlives it: of one that was killed, and of an autoscaler's, Ray leaves some processes.

    Args:
        process: Of ``ray start``, or of a script that calls it.
        started: What was below it before a part of it was killed.
    """
    started = [*started, *below(process.pid)]
    process.terminate()
    process.wait(60)
    for pid in set(started):
        with contextlib.suppress(OSError):
            if b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


class Command:
    """A command of the package in a process of its own, with its output in a file."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=file, stderr=subprocess.STDOUT)

    def wait(self, timeout: float = 240) -> int:
        """Exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end after {timeout} s:\n{self.log.read_text()[-5000:]}") from None

    def until(self, condition: Callable[[], bool], timeout: float = 180) -> None:
        """Waits for a condition while the command runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended before:\n{self.log.read_text()[-5000:]}"
            assert time.monotonic() < deadline, f"nothing happened:\n{self.log.read_text()[-5000:]}"
            time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path, demo: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, and ends those that a failed test left behind."""
    started: list[Command] = []

    def run(*arguments: str) -> Command:
        started.append(Command(list(arguments), tmp_path / "output.txt"))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
