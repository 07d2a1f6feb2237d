"""A search as a job of a real Slurm: at its time limit, preempted, cancelled, mistaken, crashing, and beside another one on a node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machines
import pytest
import slurm_machines
import yaml
from chaos_truth import Saved, saved, study_problems, trained_again
from machines import ROOT, until
from rich.console import Console
from rich.table import Table
from slurm_machines import COMPUTING, Slurm, slurm
from small_searches import agrees_with_mlflow, check_history, finished, slow_space, study_folder, trials_of

from guidino_tune.study.nodes import NODE

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(why := machines.missing() or slurm_machines.missing()), reason=why),
]

SCRIPT = str(ROOT / "cluster" / "slurm" / "search.sbatch")

EPOCHS, TRIALS = 150, 4

ENDED = "the search ended with code 130"
"""What the job says when the search was told to end, and did."""

PACED = """
import time


def term(logits, masks):
    time.sleep(0.2)
    return logits.sum() * 0


def ending(logits, masks):
    import os

    os._exit(9)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm, where jobs are submitted from a folder with loss terms of their own."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "paced.py").write_text(PACED)
    (folder / "user").mkdir()
    environment = {
        "HOME": str(folder / "user"),  # of all machines, as on clusters
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_START_OPTIONS": "--object-store-memory=100000000",
        "RAY_memory_monitor_refresh_ms": "0",  # each of them would see the memory of all
    }
    with slurm(folder, environment) as found:
        yield found


def paced(tmp_path: Path, demo: Path, *, epochs: int = EPOCHS, trials: int = TRIALS, target: str = "term", **study: Any) -> str:
    """A space whose trials take their time, but no CPU, as the machines share this one's."""
    file = slow_space(tmp_path, demo, epochs=epochs, trials=trials, pruner="none", validate_every=1, **study)
    space = yaml.safe_load(file.read_text())
    space["experiment"]["loss"] = {"custom": {"target": f"paced:{target}", "weight": 1.0}}
    del space["resources"]["concurrent"]
    file.write_text(yaml.safe_dump(space))
    return str(file)


def epochs(home: Path) -> int:
    """Epochs in the histories of all trials of all studies."""
    return sum(len(file.read_text().splitlines()) for file in home.glob("studies/*/trials/*/history.jsonl"))


class Watched:
    """A job of a search, and the home of its study."""

    def __init__(self, cluster: Slurm, home: Path, *arguments: str) -> None:
        self.cluster, self.home = cluster, home
        self.number = cluster.submit(*arguments, "--home", str(home))

    def state(self) -> tuple[str, int, str]:
        """How it stands, how often it was put back, and its exit code."""
        found = self.cluster.show(self.number)
        return found["JobState"], int(found["Restarts"]), found["ExitCode"]

    def output(self) -> str:
        return self.cluster.output(self.number)

    def show(self) -> str:
        return f"{self.state()}\n{self.output()}"

    def await_state(self, *states: str, seconds: float = 240) -> float:
        return until(lambda: self.state()[0] in states, seconds, f"job {self.number} to be {' or '.join(states)}", self.show)

    def await_queue(self, restarts: int) -> float:
        return until(lambda: self.state()[:2] == ("PENDING", restarts), 60, f"job {self.number} in the queue again", self.show)

    def await_epochs(self, more: int = 1) -> float:
        before = epochs(self.home)
        return until(lambda: epochs(self.home) >= before + more, 150, f"{more} more epochs", self.show)

    def await_line(self, line: str, times: int = 1, seconds: float = 60) -> float:
        return until(lambda: self.output().count(line) == times, seconds, f"{line!r}, {times} times", self.show)

    def update(self, *changes: str) -> None:
        self.cluster.controller.run("scontrol", "update", f"JobId={self.number}", *changes)

    def await_nothing_left(self) -> float:
        """No process on any node, and no file on its disk."""
        nodes = self.cluster.nodes

        def left() -> list[str]:
            found = [f"{node.name}: {pid}" for node in nodes for word in ("ray", "guidino", "srun") for pid in node.processes(word)]
            return found + [str(file) for node in nodes for file in (node.folder / "var").glob("guidino_tune*")]

        return until(lambda: not left(), 30, "the end of all processes", lambda: f"{left()}\n{self.show()}")


class Events:
    """What happened, and how long it took."""

    def __init__(self) -> None:
        self.table = Table("event", "after", "seconds")

    def add(self, event: str, after: str, seconds: float) -> None:
        self.table.add_row(event, after, f"{seconds:.1f}")
        print(f"{event}, after {after}: {seconds:.1f} s", flush=True)


def test_a_search_lives_through_its_time_limit_and_a_preemption(cluster: Slurm, home: Path, tmp_path: Path, demo: Path) -> None:
    events = Events()
    options = ["--nodes=2", "--cpus-per-task=1", "--time=3", "--signal=B:USR1@75"]
    job = Watched(cluster, home, *options, SCRIPT, paced(tmp_path, demo))

    def looked_at() -> tuple[Saved, dict[int, tuple[Any, ...]]]:
        agrees_with_mlflow(home, "small", interrupted=True)
        assert "Nothing is lost: run it again to go on from here" in job.output()
        assert "Traceback" not in job.output()
        return saved(home, "small"), finished(home, "small")

    events.add("first epoch", "sbatch", job.await_epochs())
    job.await_line("the time is nearly up: stopping the search", seconds=150)
    events.add("search has ended", "USR1 of the time limit", job.await_line(ENDED))
    events.add("job in the queue again", "end of the search", job.await_queue(1))
    at_limit = looked_at()
    job.update("TimeLimit=30")
    events.add("job runs again", "being in the queue", job.await_state("RUNNING"))
    events.add("next epoch", "start of the job", job.await_epochs())

    job.await_epochs(20)
    (cluster.folder / "urgent.sbatch").write_text("#!/bin/sh\nsleep 3\n")
    urgent = cluster.submit("--partition=high", "--nodes=3", "--exclusive", "urgent.sbatch")
    events.add("search has ended", "job of a higher partition", job.await_line(ENDED, times=2))
    events.add("job in the queue again", "end of the search", job.await_queue(2))
    runs = until(lambda: cluster.show(urgent)["JobState"] in ("RUNNING", "COMPLETED"), 60, "the other job", job.show)
    events.add("other job runs", "being in the queue", runs)
    preempted = looked_at()
    job.update("StartTime=now")  # once is enough to see how long Slurm lets it wait
    job.await_state("RUNNING")
    events.add("next epoch", "start of the job", job.await_epochs())
    job.await_state("COMPLETED", "FAILED", "TIMEOUT", seconds=400)
    events.add("nothing is left", "end of the job", job.await_nothing_left())
    Console(width=100).print(events.table)

    assert job.state() == ("COMPLETED", 2, "0:0"), job.show()
    trials = trials_of(home, "small")
    assert [(t.number, t.state.name, len(t.intermediate_values)) for t in trials] == [(n, "COMPLETE", EPOCHS) for n in range(TRIALS)]
    check_history(home, "small", EPOCHS)
    assert not study_problems(home, "small")
    agrees_with_mlflow(home, "small")
    after = saved(home, "small")
    for before, ended in (at_limit, preempted):
        assert trained_again(before, after) == []
        assert ended.items() <= finished(home, "small").items()
    assert len(at_limit[0]) < len(preempted[0]) < len(after) == TRIALS * EPOCHS
    nodes = {(study_folder(home, "small").trial(t.number).path / NODE).read_text().split()[0] for t in trials}
    assert len(nodes) == 2, nodes
    assert "was interrupted and goes on" not in job.output()  # no node ended before the search did


def test_a_search_takes_what_slurm_gave_and_a_mistake_ends_its_job(cluster: Slurm, home: Path, tmp_path: Path, demo: Path) -> None:
    file = paced(tmp_path, demo)
    job = Watched(cluster, home, "--nodes=2", "--cpus-per-task=3", "--gres=gpu:1", SCRIPT, file, "--dry-run")
    wrong = Watched(cluster, home, "--cpus-per-task=1", SCRIPT, file, "--set", "training.epochs=none")
    empty = Watched(cluster, home, SCRIPT)
    for one in (job, wrong, empty):
        one.await_state("COMPLETED", "FAILED")
    assert job.state() == ("COMPLETED", 0, "0:0"), job.show()
    assert "6 CPU, 2 GPU" in job.output(), job.show()
    for one, message in ((wrong, "'training.epochs' = 'none'"), (empty, "usage: sbatch")):
        assert one.state() == ("FAILED", 0, "2:0"), one.show()
        assert message in one.output()


def test_a_search_that_is_requeued_or_cancelled_stops_in_good_order(cluster: Slurm, home: Path, tmp_path: Path, demo: Path) -> None:
    """Slurm tells the search to end, and waits for it as long as for any process, also where preempted jobs have no grace."""
    job = Watched(cluster, home, "--cpus-per-task=1", SCRIPT, paced(tmp_path, demo))
    for times, state, command in ((1, "PENDING", ("scontrol", "requeue")), (2, "CANCELLED", ("scancel",))):
        job.await_epochs(4)
        cluster.controller.run(*command, str(job.number))
        job.await_line(ENDED, times=times)
        job.await_nothing_left()
        job.await_state(state)
        assert job.state()[1] == 1
        agrees_with_mlflow(home, "small", interrupted=True)
        if state == "PENDING":
            job.update("StartTime=now")


def test_a_search_that_crashes_is_tried_again_so_often_and_no_more(
    cluster: Slurm, home: Path, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster.controller.environment, "CRASHES", "1")
    job = Watched(cluster, home, "--cpus-per-task=1", SCRIPT, paced(tmp_path, demo, target="ending"))
    job.await_line("crash 1 of 1: the job goes back")
    job.await_queue(1)
    job.update("StartTime=now")
    job.await_state("FAILED")
    assert job.state() == ("FAILED", 1, "9:0")
    assert "error: crashed 2 times" in job.output()
    job.await_nothing_left()


def test_a_job_says_that_a_node_has_not_joined(
    cluster: Slurm, home: Path, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CRASHES": "0", "WAIT": "15", "NODE_FOLDER": "/var/tmp/own"}.items():
        monkeypatch.setitem(cluster.controller.environment, name, value)
    (cluster.nodes[1].folder / "var" / "own").touch()  # where a folder should be
    job = Watched(cluster, home, "--nodes=2", "--cpus-per-task=1", SCRIPT, paced(tmp_path, demo))
    job.await_state("FAILED")
    assert job.state() == ("FAILED", 0, "1:0"), job.show()
    first, second = (f"gdtnode{number}" for number in COMPUTING[:2])
    assert f"error: 1 of the 2 nodes ({first[:-2]}[{first[-2:]}-{second[-2:]}]) have joined Ray within the time (WAIT)" in job.output()
    assert "/var/tmp/own" in job.output()


def test_two_searches_share_a_node(cluster: Slurm, home: Path, tmp_path: Path, demo: Path) -> None:
    """One of each executor: what frees the places of Ray Train trials must find its own cluster."""
    jobs = {}
    for name in ("actor", "train"):
        (tmp_path / name).mkdir()
        file = paced(tmp_path / name, demo, epochs=40, trials=2, name=name)
        options = [f"--nodelist=gdtnode{COMPUTING[0]}", "--cpus-per-task=1", SCRIPT, file, "--executor", name]
        jobs[name] = Watched(cluster, home / name, *options)
    until(lambda: all(epochs(home / name) > 1 for name in jobs), 200, "both to train", lambda: "".join(job.show() for job in jobs.values()))
    for name, job in jobs.items():
        job.await_state("COMPLETED", "FAILED")
        assert job.state() == ("COMPLETED", 0, "0:0"), job.show()
        assert [t.state.name for t in trials_of(home / name, name)] == ["COMPLETE"] * 2
    jobs["train"].await_nothing_left()
