"""Locks whose holder stopped or died: a real process keeps them, and whoever comes next waits longer than a file server keeps them."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guidino_tune.data import locking, store
from guidino_tune.data.store import ChunkStore
from guidino_tune.errors import UserError
from guidino_tune.study import journal
from guidino_tune.study import locking as studies
from guidino_tune.study.journal import Journal
from guidino_tune.study.store import StudyFolder
from guidino_tune.training.folder import TrialFolder

STUDY = """
import sys
from pathlib import Path
from guidino_tune.data import locking
from guidino_tune.study import locking as studies
from guidino_tune.study.store import StudyFolder
locking.MACHINE, studies.BEAT = "another machine", 0.1
held = StudyFolder(Path(sys.argv[1])).lock()
"""

TRIAL = """
import sys
from pathlib import Path
from guidino_tune.training.folder import TrialFolder
held = TrialFolder(Path(sys.argv[1])).hold()
"""

FLOCK = """
import fcntl, sys
held = open(sys.argv[1], "a")
fcntl.flock(held, fcntl.LOCK_EX)
"""

Start = Callable[[str, Path], subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "PATIENCE", 2.0)
    monkeypatch.setattr(locking, "TELL", 0.2)


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs code in a process that says when it has its lock, and keeps it."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, path: Path) -> subprocess.Popen[str]:
        code += "print('held', flush=True)\nsys.stdin.read()\n"
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def kill_later(process: subprocess.Popen[str], seconds: float) -> None:
    """It stops now, as a machine that lost its power, and its lock goes free later, as when the file server's lease is over."""
    process.send_signal(signal.SIGSTOP)
    threading.Timer(seconds, process.kill).start()


def until(condition: Callable[[], Any]) -> None:
    """Waits for it, on a slow machine too."""
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_one_waits_longer_than_a_file_server_keeps_the_lock_of_a_dead_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert locking.PATIENCE > locking.SERVER_LEASE >= 90
    assert store.CHUNK_PATIENCE > locking.SERVER_LEASE


def test_a_study_whose_driver_died_with_its_machine_is_waited_for(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = StudyFolder(tmp_path / "study")
    process = start(STUDY, folder.path)
    assert f"process {process.pid} on" in folder.holder()
    kill_later(process, 1.2)
    begun = time.monotonic()
    with folder.lock():
        assert time.monotonic() - begun > 1.0
        assert folder.holder().startswith("process ")
        assert f"process {process.pid} " not in folder.holder()
    assert f"driver.lock is held by process {process.pid} on " in caplog.text
    assert "2 s at most" in caplog.text


def test_a_driver_that_lives_on_another_machine_is_seen_at_its_first_sign_of_life(start: Start, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    process = start(STUDY, folder.path)
    begun = time.monotonic()
    with pytest.raises(UserError, match=rf"another search works on this study \(process {process.pid} on "):
        folder.lock()
    assert time.monotonic() - begun < locking.PATIENCE


def test_a_lock_that_nobody_lets_go_of_ends_in_words(start: Start, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    process = start(STUDY, folder.path)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=rf"process {process.pid} on .* gave no sign of life for 2 s, and its lock is not free") as caught:
        folder.lock()
    assert caught.value.where == str(folder.path / "driver.lock")
    assert "remove this file" in caught.value.todo
    (folder.path / "driver.lock").unlink()
    folder.lock().close()


def test_a_driver_that_lost_its_lock_meanwhile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose machine was cut off from the file server, which gave the lock to another."""
    monkeypatch.setattr(studies, "BEAT", 0.05)
    folder = StudyFolder(tmp_path / "study")
    file, other = folder.path / "driver.lock", tmp_path / "other"
    other.write_text("process 7 on moon\nmoon")
    with folder.lock() as held:
        os.utime(file, (0, 0))
        until(lambda: file.stat().st_mtime > 0)  # it has looked, and found its own
        assert not held.taken
        file.unlink()
        with folder.lock():
            other.replace(file)
            until(lambda: held.taken)
            assert held.taken == "process 7 on moon"


def test_a_lock_is_not_lost_by_a_full_disk_or_a_new_name_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "BEAT", 0.05)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 12):  # bytes that the disk takes
        folder = StudyFolder(tmp_path / f"study {room}")
        folder.path.mkdir()
        (folder.path / "driver.lock").write_text("process 7 on moon\nmoon\n")
        with ExitStack() as stack:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            try:
                held = stack.enter_context(folder.lock())
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert (folder.path / "driver.lock").stat().st_size == room
            time.sleep(0.2)
            assert not held.taken
    with StudyFolder(tmp_path / "renamed").lock() as held:
        monkeypatch.setattr(locking, "process", lambda: "process 8 on a machine with a new name")
        time.sleep(0.2)
        assert not held.taken


def test_a_full_disk_is_no_error_when_a_lock_is_let_go(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with locking.locked(tmp_path / "lock") as held:
            assert held == "alone"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_trial_whose_process_keeps_its_folder_is_told_by_name(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = start(TRIAL, tmp_path)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=rf"process {process.pid} on .* has held .*\.lock for 2 s") as caught:
        TrialFolder(tmp_path).hold()
    assert "end it" in str(caught.value)
    assert f".lock is held by process {process.pid} on " in caplog.text
    kill_later(process, 0.5)
    TrialFolder(tmp_path).hold().close()


def test_a_journal_that_another_process_keeps_locked_is_no_endless_wait(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "optuna.journal"
    process = start(FLOCK, file)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="another process has kept a lock on the journal for 2 s"):
        Journal(file).append_logs([{"op_code": 0}])
    assert not file.read_bytes()
    kill_later(process, 0.5)
    Journal(file).append_logs([{"op_code": 0}])
    assert journal.json.loads(file.read_text()) == {"op_code": 0}


def test_a_view_that_another_process_never_finishes_is_made_by_who_waits(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "CHUNK_PATIENCE", 0.5)
    chunks = ChunkStore(tmp_path, 10**6)
    (tmp_path / "locks").mkdir()
    start(FLOCK, chunks._lock("views-a/0/0")).send_signal(signal.SIGSTOP)
    made = chunks.get("views-a/0/0", lambda: {"images": np.zeros((2, 3), np.float16)})
    assert made is not None
    assert chunks.names("views-a/0") == {"0"}
    assert "is held by" in caplog.text
    assert logging.getLevelName(caplog.records[0].levelno) == "WARNING"
