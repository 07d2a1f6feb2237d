"""What Ray Tune asks of us in each step, and what we ask of Ray, with hundreds of nodes and thousands of trials."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial
from study_helpers import drive
from synthetic_curves import synthetic_space

from guidino_tune.config import Resources
from guidino_tune.running import cluster, elastic
from guidino_tune.running.tune_adapter import StudyScheduler

NODES = 100


class Nodes:
    """A faked cluster of nodes with eight GPUs, which counts how often it is asked for them, and its clock."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int = NODES) -> None:
        import ray

        self.asked, self.time, self.number = 0, 1000.0, number
        patch.setattr(ray, "nodes", self.nodes)
        patch.setattr(time, "monotonic", lambda: self.time)
        patch.setattr(cluster, "_own", False)

    def nodes(self) -> list[dict[str, Any]]:
        self.asked += 1
        return [{"Alive": True, "NodeID": f"node {n}", "Resources": {"CPU": 64.0, "GPU": 8.0}} for n in range(self.number)]


class Controller:
    """What a scheduler sees of Tune: it must not go through all trials in every step."""

    def __init__(self) -> None:
        self.trials: list[Any] = []
        self.listed = 0

    def get_trials(self) -> list[Any]:
        self.listed += 1
        return self.trials

    def stop_trial(self, trial: Any) -> None:
        trial.status = TuneTrial.TERMINATED

    def add(self, scheduler: StudyScheduler, name: str, **config: Any) -> Any:
        trial = SimpleNamespace(
            trial_id=name, status=TuneTrial.PENDING, config=config, update_resources=lambda booked: None,
            placement_group_factory=SimpleNamespace(bundles=[{"CPU": 8.0, "GPU": 1.0}]),
        )  # fmt: skip
        self.trials.append(trial)
        scheduler.on_trial_add(self, trial)
        return trial


def test_the_oldest_trial_that_waits_is_found_without_looking_at_those_that_ended(tmp_path: Path) -> None:
    scheduler, controller = StudyScheduler(drive(tmp_path, synthetic_space(9))), Controller()
    trials = [controller.add(scheduler, str(n)) for n in range(500)]
    for number, trial in enumerate(trials):
        assert scheduler.choose_trial_to_run(controller) is trial
        assert scheduler.choose_trial_to_run(controller) is trial  # nothing has changed
        trial.status = TuneTrial.TERMINATED if number % 3 else TuneTrial.RUNNING
    assert scheduler.choose_trial_to_run(controller) is None
    assert controller.listed == 0


def test_hundreds_that_wait_for_other_nodes_are_looked_at_with_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, number=2)
    driver = drive(tmp_path, synthetic_space(9))
    scheduler, controller = StudyScheduler(driver, cluster.plan(Resources(gpus_per_worker=1))), Controller()
    waiting = [controller.add(scheduler, str(n), avoided=["node 0"]) for n in range(400)]
    nodes.asked = 0
    nodes.time += elastic.LOOK
    assert scheduler.choose_trial_to_run(controller) is waiting[0]
    assert (nodes.asked, controller.listed) == (1, 1)
    nodes.number, nodes.time = 1, nodes.time + elastic.LOOK  # the other node has left: they may begin on the first one
    assert scheduler.choose_trial_to_run(controller) is None
    assert {trial.status for trial in waiting} == {TuneTrial.TERMINATED}
    assert nodes.asked == 2


def test_places_of_a_hundred_nodes_are_counted_once_for_a_thousand_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, told = Nodes(monkeypatch), list[str]()
    places = elastic.Places(cluster.plan(Resources(gpus_per_worker=1, executor="actor")), told.append)
    nodes.asked = 0
    assert [places.now() for _ in range(1000)] == [8 * NODES + 1] * 1000
    assert nodes.asked == 1
    nodes.number, nodes.time = NODES - 10, nodes.time + elastic.LOOK
    assert [places.now() for _ in range(1000)] == [8 * (NODES - 10) + 1] * 1000
    assert nodes.asked == 2
    assert told == ["90 node(s) now: 720 trials side by side, 800 before"]


def test_folders_of_many_trials_that_begin_are_not_read_in_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, read = [1000.0], list[Path]()
    where: Callable[[Path], str] = lambda folder: ""  # noqa: E731

    def read_node(folder: Path) -> str:
        clock[0] += 0.01
        read.append(folder)
        return where(folder)

    monkeypatch.setattr("guidino_tune.study.driver.read_node", read_node)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    driver = drive(tmp_path, synthetic_space(9, trials=900, sampler="random"), has_others=lambda node: True)
    for n in range(100):
        driver.ask(str(n))
    for n in range(3):
        driver.fail(str(n), "environment", "no driver of the GPU", "bad 0123")
        driver.outcomes.nodes.leave(n)  # it had left another node before
        driver.tell(str(n), crashed=False)
    read.clear()
    assert [driver.given_up for _ in range(500)] == [""] * 500  # others may just be starting
    assert len(read) == 97
    clock[0] += 20
    where = lambda folder: "good 4567"  # noqa: E731
    assert driver.given_up == ""
    assert len(read) == 2 * 97
    assert {*driver.outcomes.nodes.used} == {"bad 0123", "good 4567"}
