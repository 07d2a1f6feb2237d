"""The start of a search with a Ray of its own, which starts beside the checks, and whose processes of trials are forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, below
from optuna.trial import TrialState
from small_searches import running, slow_space, study_folder, trials_of

from guidino_tune.running.inspection import known_cluster

pytestmark = pytest.mark.usefixtures("no_cluster")

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Where nobody is left to end them, they look for their cluster for another minute and then end by themselves."""


def commands(pids: Iterable[int]) -> dict[int, str]:
    """The commands of those of these processes that have not ended."""
    found = {}
    for pid in pids:
        try:
            if words := Path(f"/proc/{pid}/cmdline").read_bytes().decode():  # empty when nobody has waited for its end yet
                found[pid] = words.replace("\0", " ").strip()
        except OSError:
            continue
    return found


def gone(pids: Iterable[int], seconds: float = 30) -> None:
    """Waits until nothing of a search is left."""
    deadline = time.monotonic() + seconds
    while left := [words for words in commands(pids).values() if words not in AGENTS]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.fixture
def own(tmp_path: Path, home: Path) -> Iterator[Any]:
    """Starts a search in a session of its own, as a terminal does."""
    known_cluster({})  # forgets the note of the shared cluster, which has ended
    log, started = tmp_path / "own.txt", list[subprocess.Popen[bytes]]()

    def start(*arguments: str) -> Command:
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "guidino_tune.search", *arguments], stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        started.append(process)
        command: Any = Command.__new__(Command)
        command.process, command.log = process, log
        return command  # type: ignore[no-any-return]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_killed_trainer_is_forked_again_and_its_trial_goes_on(own: Any, home: Path, tmp_path: Path, demo: Path) -> None:
    search = own(str(slow_space(tmp_path, demo, epochs=900, trials=2, pruner="none")))
    search.until(lambda: len(running(home, "small")) == 2)

    found = list[int]()

    def both_are_seen() -> bool:  # a process changes its title all the time
        titles = commands(below(search.process.pid)).items()
        found[:] = [pid for pid, words in titles if words.startswith("ray::ResourceTrainable")]
        return len(found) == 2

    search.until(both_are_seen)
    started = below(search.process.pid)
    parents = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in found}
    assert len(parents) == 1  # one for all, which Ray did not start
    assert "guidino_tune.search" in Path(f"/proc/{parents.pop()}/cmdline").read_text()
    os.kill(found[0], signal.SIGKILL)
    assert search.wait() == 0
    assert [t.state for t in trials_of(home, "small")] == [TrialState.COMPLETE] * 2
    text = search.log.read_text()
    assert "Traceback" not in text
    assert text.count("raylet") <= 1  # of the one that was killed; of those that ended by themselves Ray has nothing to say
    gone(started)


def test_a_mistake_is_told_and_no_process_is_left(own: Any, home: Path, tmp_path: Path, demo: Path) -> None:
    space = slow_space(tmp_path, demo, epochs=1, trials=1)
    search = own(str(space), "--set", "data.kind=folder", "--set", f"data.root={tmp_path}/nowhere")
    started = set[int]()
    while search.process.poll() is None:
        started.update(below(search.process.pid))
        time.sleep(0.02)
    assert search.wait() == 2
    text = search.log.read_text()
    assert text.startswith("error: ")
    assert "nowhere" in text
    assert not study_folder(home, "small").definition.exists()
    gone(started)


@pytest.mark.parametrize("way", ["Ctrl-C", "killed"])
def test_stopped_while_ray_starts_nothing_is_left(way: str, own: Any, home: Path, tmp_path: Path, demo: Path) -> None:
    search = own(str(slow_space(tmp_path, demo, epochs=900, trials=2, pruner="none")))
    search.until(lambda: any("gcs_server" in words for words in commands(below(search.process.pid)).values()))
    started = below(search.process.pid)
    if way == "killed":
        search.process.kill()
        search.process.wait()
    else:
        os.killpg(search.process.pid, signal.SIGINT)
        assert search.wait(30) == 130
    gone(started)


@pytest.mark.parametrize("option", ["--help", "--dry-run"])
def test_what_only_shows_starts_nothing(option: str, own: Any, home: Path, tmp_path: Path, demo: Path) -> None:
    search = own(str(slow_space(tmp_path, demo, epochs=1, trials=1)), option)
    while search.process.poll() is None:
        assert not [words for words in commands(below(search.process.pid)).values() if "gcs_server" in words]
        time.sleep(0.1)
    assert search.wait() == 0
