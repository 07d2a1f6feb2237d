"""Processes of trials that are forked from the driver as it was when it began, by what Ray starts in the place of Python."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guidino_tune.running import launcher

WORKER = """
import json, os, random, sys, threading
forked = "torch" in sys.modules
import numpy, torch
numbers = [random.random(), numpy.random.random(), torch.rand(1).item()]
if forked:
    import ray
    numbers += [ray.ObjectRef.from_random().hex() for _ in range(5)]
torch.set_num_threads(2)
weights = torch.ones(8, 8, 3, 3, requires_grad=True)
torch.nn.functional.conv2d(torch.ones(4, 8, 64, 64), weights).sum().backward()  # hangs where threads of the driver were lost
print(json.dumps({
    "forked": forked, "words": sys.argv[1:], "folder": os.getcwd(), "note": os.environ.get("NOTE"), "pid": os.getpid(),
    "parent": os.getppid(), "group": os.getpgid(0), "sum": weights.grad.sum().item(), "numbers": numbers,
}))
if sys.argv[1:] == ["fails"]:
    raise SystemExit(3)
"""

DRIVER = """
import sys
from guidino_tune.config import Resources
from guidino_tune.running import forking
from guidino_tune.running.forking import forked_processes, python_of_trials
forking._ENDING = 2.0
with forked_processes(Resources()):
    print(python_of_trials(), flush=True)
    sys.stdin.read()
print("after", python_of_trials(), flush=True)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("worker") / "default_worker.py"
    file.write_text(WORKER)
    return file


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[str]]:
    """A driver of its own, for this process has threads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_ADDRESS"] = "local"  # whatever cluster is on this machine
    started = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    yield started
    started.kill()
    started.wait()


def told(command: str, script: Path, *words: str, folder: Path, **environment: str) -> dict[str, object]:
    """What a worker says that is started as Ray does."""
    result = subprocess.run(
        [*command.split(), str(script), *words], cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {**lines[0], "started": len(lines)}


def first_line(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout
    return driver.stdout.readline().strip()


def is_there(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_workers_are_forked_and_each_is_as_ray_starts_it(driver: subprocess.Popen[str], script: Path, tmp_path: Path) -> None:
    command = first_line(driver)
    ours = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "7"}
    found = [told(command, script, "a b", str(i), folder=tmp_path, NOTE=f"note {i}", **ours) for i in range(2)]
    for i, one in enumerate(found):
        assert one["forked"]
        assert one["started"] == 1
        assert (one["words"], one["folder"], one["note"]) == (["a b", str(i)], str(tmp_path), f"note {i}")
        assert one["group"] == one["pid"]  # Ray ends a process with its group, which must not be the others'
        assert one["sum"] == 4 * 8 * 8 * 9 * 62 * 62
    assert found[0]["parent"] == found[1]["parent"] != os.getpid()
    first, second = (one["numbers"] for one in found)
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert not set(first) & set(second)  # random, numpy, torch, and Ray's IDs
    # Of another cluster, and no worker: as Python starts them.
    assert not told(command, script, folder=tmp_path, **ours | {"RAY_JOB_ID": "02000000"})["forked"]
    other = tmp_path / "other.py"
    other.write_text(WORKER)
    assert not told(command, other, folder=tmp_path, **ours)["forked"]
    # With the end of the block the parent ends, and nothing is forked any more.
    assert driver.stdin
    driver.stdin.close()
    assert driver.wait(20) == 0
    assert first_line(driver) == "after None"
    assert not is_there(int(str(found[0]["parent"])))
    assert not Path(command.split()[-1]).parent.exists()
    assert not told(command, script, folder=tmp_path, **ours)["forked"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_a_killed_driver_takes_the_parent_along(driver: subprocess.Popen[str], script: Path, tmp_path: Path) -> None:
    command = first_line(driver)
    parent = int(str(told(command, script, folder=tmp_path)["parent"]))
    driver.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_there(parent) or Path(command.split()[-1]).parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_launchers_that_die_or_talk_nonsense_neither_end_nor_block_the_parent(
    driver: subprocess.Popen[str], script: Path, tmp_path: Path
) -> None:
    command = first_line(driver)
    parent = told(command, script, folder=tmp_path)["parent"]
    length = (64).to_bytes(8, "little")
    said = [[], [length], [length, b"half"], [(3).to_bytes(8, "little"), b"a\0b"], [(3).to_bytes(8, "little"), b"a\0" + b"0"]]
    for parts in said:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(command.split()[-1])
            for part in parts[:1]:
                socket.send_fds(connection, [part], [0, 1, 2])
            for part in parts[1:]:
                connection.sendall(part)
    other = b"\0".join([os.fsencode(tmp_path), b"1", b"other.py"])  # is told that it is to become Python, and is not there any more
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(command.split()[-1])
        socket.send_fds(connection, [len(other).to_bytes(8, "little") + other], [0, 1, 2])
    assert told(command, script, folder=tmp_path)["parent"] == parent
    assert sorted(os.listdir(f"/proc/{parent}/fd"), key=int)[:3] == ["0", "1", "2"]
    assert len(os.listdir(f"/proc/{parent}/fd")) < 10  # the streams of all of them are closed
    assert driver.stdin
    driver.stdin.close()
    assert driver.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_driver_ends_without_its_parent(number: int, driver: subprocess.Popen[str]) -> None:
    command = first_line(driver)
    parent = int(Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text())
    os.kill(parent, number)
    assert driver.stdin
    driver.stdin.close()
    try:
        assert driver.wait(20) == 0
    finally:
        if is_there(parent):
            os.kill(parent, signal.SIGKILL)
    assert not Path(command.split()[-1]).parent.exists()


def test_without_a_parent_the_launcher_becomes_python(script: Path, tmp_path: Path) -> None:
    assert not launcher.forked(str(tmp_path / "nowhere"), [str(script)])
    command = f"{sys.executable} -I -S {launcher.__file__} {tmp_path}/nowhere"
    assert not told(command, script, folder=tmp_path)["forked"]


def test_a_process_with_threads_is_not_forked() -> None:
    program = DRIVER.replace("import sys\n", "import sys, threading, time\nthreading.Thread(target=time.sleep, args=(1,)).start()\n", 1)
    result = subprocess.run([sys.executable, "-c", program], input="", capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines() == ["None", "after None"]
