"""Failures that only a cluster has: a machine that goes away, a process that is killed, a cause that all trials have in common."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import tune
from small_searches import slow_space, study_folder, trials_of

from guidino_tune.running import executors, tune_adapter
from guidino_tune.search import main as search
from guidino_tune.study.outcomes import PATIENCE

MACHINES = 2


@pytest.fixture
def machines(cluster: str, tmp_path: Path) -> Iterator[None]:
    """More nodes of the cluster, on which alone the trials of a test can run."""
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--address={cluster}", "--num-cpus=1", "--block"]
    resources = ['--resources={"spare": 1}', "--object-store-memory=100000000"]
    log = tmp_path / "machines.txt"
    started: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("w") as file:
            for number in range(1, MACHINES + 1):  # one after the other: two at once are taken for the same machine
                started.append(subprocess.Popen([*command, *resources], stdout=file, stderr=file))
                deadline = time.monotonic() + 45
                while ray.cluster_resources().get("spare", 0) < number:
                    assert time.monotonic() < deadline, log.read_text()
                    assert started[-1].poll() is None, log.read_text()
                    time.sleep(0.1)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def small(tmp_path: Path, demo: Path, **study: Any) -> str:
    file = slow_space(tmp_path, demo, epochs=3, pruner="none", **study)
    space = yaml.safe_load(file.read_text())
    space["resources"]["concurrent"] = 1
    file.write_text(yaml.safe_dump(space))
    return str(file)


def test_lost_machines_and_killed_processes_cost_no_trial(
    home: Path, tmp_path: Path, demo: Path, machines: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mortal(executors.TrialActor):
        """Takes its machine with it in trial 0, is killed in trial 1, each once after the first epoch."""

        def _step(self, told: dict[str, Any]) -> None:
            mark = Path(self.config["folder"]) / "died"
            if self.run and self.config["number"] < 2 and not mark.exists():
                mark.touch()
                os.kill(os.getppid() if self.config["number"] == 0 else os.getpid(), signal.SIGKILL)  # a worker's parent is its raylet
                time.sleep(60)
            super()._step(told)

    monkeypatch.setattr(tune_adapter, "trainable", lambda plan: tune.with_resources(Mortal, {"CPU": 1, "spare": 1}))
    assert search([small(tmp_path, demo, trials=3)]) == 0
    trials = trials_of(home, "small")
    assert [t.state.name for t in trials] == ["COMPLETE"] * 3
    assert all((study_folder(home, "small").trial(n).path / "died").exists() for n in (0, 1))
    for trial in trials:
        assert [r.epoch for r in study_folder(home, "small").trial(trial.number).history()] == [1, 2, 3]
    printed = capsys.readouterr().out
    assert "trial 0 was interrupted and goes on from its checkpoint (preempted: " in printed
    assert "trial 1 was interrupted and goes on from its checkpoint (crashed: " in printed


def test_a_cause_that_all_trials_have_ends_the_search_which_then_goes_on(
    home: Path, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mended = tmp_path / "mended"

    class Broken(executors.TrialActor):
        """Fails until it is mended, then in every trial but the first and the third."""

        def _step(self, told: dict[str, Any]) -> None:
            if not mended.exists() or self.config["number"] not in (PATIENCE, PATIENCE + 2):
                raise RuntimeError(f"shapes differ in trial {self.config['number']}")
            super()._step(told)

    monkeypatch.setattr(tune_adapter, "trainable", lambda plan: tune.with_resources(Broken, {"CPU": plan.cpus}))
    file = small(tmp_path, demo, trials=4)
    assert search([file]) == 1
    printed = capsys.readouterr().out
    assert [t.state.name for t in trials_of(home, "small")] == ["FAIL"] * PATIENCE
    assert "3 bug (trial 0, 1, 2): shapes differ in trial 0" in printed
    assert "all of them failed the same way (bug)" in printed
    assert "run it again to go on" in printed
    mended.touch()
    assert search([file]) == os.EX_TEMPFAIL  # two had results, the second in a process that had seen a failure; then all failed
    assert [t.state.name for t in trials_of(home, "small")] == [*["FAIL"] * PATIENCE, "COMPLETE", "FAIL", "COMPLETE", *["FAIL"] * PATIENCE]
    printed = capsys.readouterr().out
    assert f"failed the same way, not through their configuration: bug: shapes differ in trial {PATIENCE + 5}" in printed
    assert "all of them" not in printed


def test_a_node_where_everything_fails_is_left_to_itself(
    home: Path, tmp_path: Path, demo: Path, machines: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and "spare" in node["Resources"])
    begun, failures = tmp_path / "begun", tmp_path / "failures"
    failures.mkdir()

    def wait_for(happened: Callable[[], bool]) -> None:  # in here, so that it travels with the actor
        deadline = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    class Broken(executors.TrialActor):
        """Fails in every trial on one node; the other one's first trial goes past its first epoch when enough have failed there."""

        def _step(self, told: dict[str, Any]) -> None:
            executors.note_node(Path(self.config["folder"]))
            if ray.get_runtime_context().get_node_id() == bad:
                wait_for(begun.exists)
                (failures / str(self.config["number"])).touch()
                raise RuntimeError("no driver of the GPU")
            if self.run:
                begun.touch()
                wait_for(lambda: len(list(failures.iterdir())) >= PATIENCE)
            super()._step(told)

    monkeypatch.setattr(tune_adapter, "trainable", lambda plan: tune.with_resources(Broken, {"CPU": 1, "spare": 1}))
    space = yaml.safe_load(Path(small(tmp_path, demo, trials=6)).read_text())
    space["resources"]["concurrent"] = 2
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(space))
    assert search([str(tmp_path / "small.yaml")]) == 0
    trials = trials_of(home, "small")
    failed = [t for t in trials if t.state.name == "FAIL"]
    assert PATIENCE <= len(failed) <= PATIENCE + 1  # one may have been asked for before
    assert all(bad in t.user_attrs["node"] for t in failed)
    assert sum(t.state.name == "COMPLETE" for t in trials) == 6
    assert not any(bad in t.user_attrs["node"] for t in trials if t.state.name == "COMPLETE")
    assert "one configuration after the other failed there" in capsys.readouterr().out
