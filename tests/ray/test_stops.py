"""A disk that fills up, a search that is stopped in every way, and what a search leaves behind on its machine: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import Command
from in_process import without_ray
from optuna.trial import TrialState
from small_searches import agrees_with_mlflow, check_history, running, slow_space, study_folder, trials_of

from guidino_tune.running.inspection import known_cluster
from guidino_tune.search import main as search
from guidino_tune.study.pruners import PRUNERS

Start = Callable[..., Command]


def resources_are_back(seconds: float = 90) -> None:
    """Everything that the cluster has can be booked again, and no trial's process is left."""
    import ray
    from ray.util.state import list_actors

    deadline = time.monotonic() + seconds
    while True:
        free, there = ray.available_resources(), ray.cluster_resources()
        actors = [a.class_name for a in list_actors(filters=[("state", "=", "ALIVE")])]
        left = [name for name in actors if "Autoscaling" not in name]  # Ray's own, which stays
        if all(free.get(name) == there[name] for name in ("CPU", "memory")) and not left:
            return
        assert time.monotonic() < deadline, (free, there, left)
        time.sleep(0.2)


def processes_of(home: Path) -> list[str]:
    """Commands of the processes that a search with this home has started, its own Ray with them."""
    found, marker = [], f"GUIDINO_TUNE_HOME={home}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode()  # empty when it has ended and nobody waited for it yet
            if words and marker in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(f"{folder.name} {words[:80]}")
        except OSError:
            continue
    return found


def whole_journal(home: Path) -> None:
    text = study_folder(home, "small").journal.read_bytes()
    assert text.endswith(b"\n")
    for line in text.splitlines():
        assert "op_code" in json.loads(line)


def fill(disk: Path) -> None:
    """Takes all that is left."""
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize(("executor", "trials"), [("actor", 4), ("train", 1)])
def test_after_early_stops_everything_can_be_booked_again(
    executor: str, trials: int, home: Path, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_cluster({})  # that of an earlier test; what cleans up after a Ray Train trial would ask it
    # No Dice reaches it, so every trial is stopped at its first comparison.
    monkeypatch.setitem(PRUNERS, "asha", lambda study: optuna.pruners.ThresholdPruner(lower=2.0))
    command = [str(slow_space(tmp_path, demo, epochs=4, trials=trials, min_epochs=1, pruner="asha")), "--executor", executor]
    assert search([*command, "--set", f"resources.concurrent={2 if executor == 'actor' else 1}"]) == 1  # no trial was complete
    ended = trials_of(home, "small")
    assert [t.state for t in ended] == [TrialState.PRUNED] * trials, [t.user_attrs for t in ended if t.state == TrialState.FAIL]
    resources_are_back()


def test_a_disk_that_fills_up_ends_the_search_and_it_goes_on(
    tmp_path: Path, demo: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    try:
        home = disk / "home"
        monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
        command = ("guidino_tune.search", str(slow_space(tmp_path, demo, epochs=45, trials=2, pruner="none")))
        first = start(*command)
        first.until(lambda: len(running(home, "small")) == 2)
        fill(disk)
        code = first.wait(90)
        output = first.log.read_text()
        # Trials met it first and all failed so, or all but one that went on in what they had left; or the driver did.
        assert code in (1, 2, os.EX_TEMPFAIL), output
        assert "disk is full" in output or "No space left on device" in output
        assert "Traceback" not in output
        whole_journal(home)
        failed = [t for t in trials_of(home, "small") if t.state == TrialState.FAIL]
        assert {t.user_attrs["failure"] for t in failed} <= {"environment"}

        fill(disk)
        assert search([command[1]]) == 2  # at once: nothing is started on a full disk
        (disk / "filler").unlink()
        without_ray(monkeypatch)  # what goes on is the study
        assert search([command[1]]) == 0
        ended = [t for t in trials_of(home, "small") if t.state != TrialState.FAIL]
        assert [t.state for t in ended] == [TrialState.COMPLETE] * 2
        for trial in ended:
            assert [r.epoch for r in study_folder(home, "small").trial(trial.number).history()] == list(range(1, 46))
        whole_journal(home)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tracking server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


def test_a_stop_takes_seconds_although_mlflow_does_not_answer_and_the_search_goes_on(
    home: Path, tmp_path: Path, demo: Path, start: Start, silent_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("guidino_tune.search", str(slow_space(tmp_path, demo, epochs=40, trials=3, pruner="none", validate_every=1)))
    first = start(*command)
    first.until(lambda: len(running(home, "small")) == 2)
    clock = time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    code, seconds = first.wait(60), time.monotonic() - clock
    assert code == 130
    assert seconds < 20, f"stopping took {seconds:.1f} s"
    assert {t.state for t in trials_of(home, "small") if t.number < 2} == {TrialState.RUNNING}
    output = first.log.read_text()
    assert "run it again to go on" in output
    assert "not yet in MLflow" in output
    assert "Traceback" not in output
    whole_journal(home)
    resources_are_back()

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    without_ray(monkeypatch)  # what goes on is the study
    assert search([command[1]]) == 0
    assert [t.state for t in trials_of(home, "small")] == [TrialState.COMPLETE] * 3
    check_history(home, "small", 40)
    agrees_with_mlflow(home, "small")


@pytest.mark.parametrize("way", ["Ctrl-C twice", "killed"])
def test_a_search_with_a_ray_of_its_own_leaves_no_process(
    way: str, home: Path, tmp_path: Path, demo: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("guidino_tune.search", str(slow_space(tmp_path, demo, epochs=600, trials=2, pruner="none")))
    log = tmp_path / "own.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "RAY_ADDRESS": "local"},
        )  # fmt: skip
    own: Any = Command.__new__(Command)
    own.process, own.log = process, log
    try:
        own.until(lambda: len(running(home, "small")) == 2)
        assert len(processes_of(home)) > 5
        clock = time.monotonic()
        if way == "killed":
            process.kill()
            process.wait()
        else:
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes in front
            time.sleep(0.4)
            os.killpg(process.pid, signal.SIGINT)
            assert own.wait(30) == 130
            assert time.monotonic() - clock < 20
            assert "Nothing is lost" in log.read_text()
        assert "Traceback" not in log.read_text()
        deadline = time.monotonic() + 20
        # Where nobody is left to end them, Ray's two agents look for their cluster for another minute and then end by themselves.
        agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent") if way == "killed" else ()
        while (left := [p for p in processes_of(home) if p.split()[1].rstrip("\0") not in agents]) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    whole_journal(home)
    assert {t.state for t in trials_of(home, "small")} == {TrialState.RUNNING}
    if way == "killed":
        monkeypatch.delenv("RAY_ADDRESS")  # Ray still remembers the cluster that died with its driver
        assert start(*command).wait() == 0
        assert [t.state for t in trials_of(home, "small")] == [TrialState.COMPLETE] * 2
