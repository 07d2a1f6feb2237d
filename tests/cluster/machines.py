"""Machines made of namespaces: addresses, processes, temporary folders and homes of their own, and one folder that all of them mount.

They stand on one bridge with addresses of the project's own, and nothing of them is reached from elsewhere. Needs root, on Linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

NET = "10.77.0"
BRIDGE, HERE = "gdtbridge", f"{NET}.254"
"""This machine's own end, where servers that no machine owns may listen."""

ROOT = Path(__file__).parents[2]

KEPT = ("PATH", "LANG", "LC_ALL", "TERM", "GUIDINO_TUNE_DATA")
"""What a machine's commands inherit."""


class TooSlow(AssertionError):
    """Something did not happen in its time."""


def until(condition: Callable[[], Any], seconds: float, what: str, look: Callable[[], str] = str) -> float:
    """Waits for ``condition``; gives the seconds that it took.

    Raises:
        TooSlow: It is not true within ``seconds``; says ``what`` was awaited, and what ``look`` shows.
    """
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise TooSlow(f"{what}: not within {seconds:.0f} s\n{look()}")
        time.sleep(0.1)
    return time.monotonic() - begun


@cache
def missing() -> str:
    """Why there can be no such machines here; empty when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    absent = [program for program in ("ip", "unshare", "nsenter", "setpriv", "mount") if shutil.which(program) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install iproute2 util-linux"
    name = f"gdt{os.getpid()}"
    if _quiet("ip", "link", "add", name, "type", "bridge") or _quiet("ip", "link", "del", name):
        return "may not make a network bridge here"
    if _quiet("ip", "netns", "add", name) or _quiet("ip", "netns", "del", name):
        return "may not make a network namespace here"
    return ""


class Machine:
    """One machine: a process that only waits, in namespaces of its own, and all that is started beside it.

    Args:
        number: Of its address, 1 to 99.
        folder: Its own files: its home, and what lies in its ``/tmp/ray`` and ``/var/tmp``.
        environment: Variables of all its commands.
        before: Shell lines that change what it mounts before anything runs on it.
    """

    def __init__(self, number: int, folder: Path, environment: Mapping[str, str] | None = None, before: Sequence[str] = ()) -> None:
        self.name, self.address = f"gdtnode{number}", f"{NET}.{number}"
        self.folder, self.home, self.link = folder / self.name, folder / self.name / "home", f"gdtlink{number}"
        self.started: list[subprocess.Popen[bytes]] = []
        own = ("ray", "var", "shm")
        for part in own:
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.home.mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _run("ip", "link", "set", self.link, "master", BRIDGE, "up")
        _run("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", self.name, "link", "set", device, "up")
        _run("ip", "-n", self.name, "route", "add", "default", "via", HERE)
        lines = [
            "set -e",
            f"hostname {self.name}",
            "mount --make-rprivate /",
            "mount -t tmpfs -o size=400m tmpfs /dev/shm",
            f"mount --bind {self.folder}/ray /tmp/ray",
            f"mount --bind {self.folder}/var /var/tmp",
            *before,
            f"touch {self.folder}/up",
            # Bash as the first process: it buries orphans, as an init does; unburied, they count as alive for `ray job stop`.
            "sleep infinity & wait",
        ]
        space = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # Whoever kills the tests, ends their machines.
        mortal = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.name]
        self.process = subprocess.Popen([*mortal, *space, "bash", "-c", "\n".join(lines)])
        until(lambda: (self.folder / "up").exists() or self.process.poll() is not None, 20, f"{self.name} to be up")
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} could not be made")
        (self.pid,) = (int(child) for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())
        self.environment = {k: v for k, v in os.environ.items() if k in KEPT} | {"HOME": str(self.home), "USER": "root"}
        self.environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | dict(environment or {})

    def enter(self, *command: str) -> list[str]:
        """The command line that runs ``command`` there."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-i", "-p", f"--wd={ROOT}", *command]

    def start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a command there, with its output in a file of that name in the machine's folder."""
        with (self.folder / log).open("ab") as file:
            # A group of its own: a signal to this process's is not for a machine.
            process = subprocess.Popen(
                self.enter(*command), env=self.environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.started.append(process)
        return process

    def run(self, *command: str, timeout: float = 120) -> str:
        """What a command prints there.

        Raises:
            AssertionError: It failed.
        """
        done = subprocess.run(self.enter(*command), env=self.environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, line: str, timeout: float = 120) -> str:
        """What a line of bash prints there; see ``run``."""
        return self.run("bash", "-c", line, timeout=timeout)

    def log(self, name: str) -> str:
        """What is in a file of ``start``."""
        return (self.folder / name).read_text()

    def cut(self) -> None:
        """Takes its network away: it runs on, and nobody hears of it."""
        _run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """Gives its network back."""
        _run("ip", "link", "set", self.link, "up")

    def processes(self, word: str) -> list[int]:
        """Ids, as seen from outside, of its processes whose command line holds ``word``, but for the first one, without which all end."""
        space, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    folder.name != str(self.pid)
                    and os.readlink(folder / "ns/pid") == space
                    and word in (folder / "cmdline").read_bytes().decode(errors="replace")
                ):
                    found.append(int(folder.name))
        return sorted(found)

    def kill(self, word: str) -> list[int]:
        """Kills its processes whose command line holds ``word``; their ids."""
        found = self.processes(word)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def end(self) -> None:
        """Power off: everything that runs there is gone at once, and its network with it."""
        self.process.kill()
        self.process.wait()
        for process in self.started:
            process.wait(30)
        _quiet("ip", "link", "del", self.link)
        _quiet("ip", "netns", "del", self.name)


@contextlib.contextmanager
def machines() -> Iterator[Callable[..., Machine]]:
    """Makes machines, and takes them all away in the end, with what an earlier run that was killed has left.

    Their names are always the same: another run on this machine waits.
    """
    made: list[Machine] = []
    lock = os.open("/tmp/guidino-machines.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def make(*arguments: Any, **options: Any) -> Machine:
        made.append(Machine(*arguments, **options))
        return made[-1]

    try:
        _clear()
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{HERE}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        yield make
    finally:
        for machine in made:
            machine.end()
        _clear()
        os.close(lock)


def _clear() -> None:
    for name in _names("ip", "netns", "list"):
        if name.startswith("gdtnode"):
            for pid in _names("ip", "netns", "pids", name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _quiet("ip", "netns", "del", name)
    for link in Path("/sys/class/net").glob("gdt*"):
        _quiet("ip", "link", "del", link.name)


def _names(*command: str) -> list[str]:
    """The first word of each line."""
    return [line.split()[0] for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _quiet(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode
