"""One search on machines that join, are cut off, die and come back, and that outlives its servers, its job and its head.

Trials are groups of two workers on two machines. What happened, and how long it took, is printed as a table.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chaos_truth as truth
import pytest
import yaml
from clusters import Cluster, Tracking
from machines import HERE, NET, machines, missing, until
from optuna.trial import TrialState
from postgres_server import Server, needs_postgres, started
from small_searches import slow_space, study_folder, trials_of

pytestmark = [needs_postgres, pytest.mark.timeout(2400)]

EPOCHS = 150


class Night(Cluster):
    """With its databases."""

    database: Server
    tracking: Tracking


@pytest.fixture
def night(tmp_path: Path, home: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Night]:
    if why := missing():
        pytest.skip(why)
    file = slow_space(tmp_path, demo, epochs=EPOCHS, trials=100, pruner="none", validate_every=1)
    space: dict[str, Any] = yaml.safe_load(file.read_text())
    space["experiment"]["loss"] = {"custom": {"target": "paced:term", "weight": 1.0}}
    space["resources"] = {"executor": "train", "workers": 2, "cpus_per_worker": 1, "max_failures": 10}
    file.write_text(yaml.safe_dump(space))
    (home / "studies").mkdir(parents=True)
    with machines() as make, started(HERE, f"{NET}.0/24") as database:
        monkeypatch.setenv("GUIDINO_TUNE_STORAGE", database.create("studies"))
        tracking = Tracking(home, database.create("mlflow"))
        made = Night(
            tmp_path, home, make, {"GUIDINO_TUNE_STORAGE": os.environ["GUIDINO_TUNE_STORAGE"], "MLFLOW_TRACKING_URI": tracking.uri}
        )
        made.database, made.tracking = database, tracking
        try:
            tracking.start()
            made.start_head()
            yield made
        finally:
            tracking.kill()


def test_one_search_lives_through_all_of_it(night: Night, home: Path) -> None:
    n = night
    n.submit()
    n.says("carry 0: waiting 15 minutes for nodes (resources.wait_for_nodes)")
    clock = time.monotonic()
    first, second = n.workers = [n.join(11), n.join(12)]
    until(lambda: bool(n.epochs()), 300, "the first epoch", n.output)
    n.row("a cluster without CPUs, then two machines", "first epoch of trial 0", time.monotonic() - clock)

    clock = time.monotonic()
    third, fourth = n.join(13), n.join(14)
    n.workers += [third, fourth]
    for machine in (third, fourth):
        until(lambda m=machine: "Ray runtime started" in m.log("worker.txt"), 60, "the node", lambda m=machine: m.log("worker.txt"))
    joined = time.monotonic()
    until(lambda: "2 trials side by side, 1 before" in n.output(), 15, "their use", n.output)
    n.row("two more machines join", "another trial is given to them", time.monotonic() - joined)
    until(lambda: all(m.processes("RayTrainWorker") for m in (third, fourth)), 120, "workers on them", n.output)
    n.row("", "its workers have started", time.monotonic() - joined)
    until(lambda: len(n.epochs()) == 2, 300, "trial 1 to train", n.output)
    n.row("", "its first epoch", time.monotonic() - joined)

    until(lambda: all(m.processes("RayTrainWorker") for m in (first, second)), 120, "workers on all machines", n.output)
    clock = time.monotonic()
    second.cut()
    n.says("4 node(s) now: 1 trials side by side, 2 before", 60)
    n.row("the network of a machine goes away for 60 s", "it is given up", time.monotonic() - clock)
    n.goes_on(1)
    time.sleep(max(0.0, 60 - (time.monotonic() - clock)))
    clock = time.monotonic()
    second.mend()
    n.goes_on(2)
    n.row("it is back", "both trials train", time.monotonic() - clock)

    clock, there = time.monotonic(), third.processes("RayTrainWorker")
    third.kill("raylet/raylet")
    until(lambda: not set(there) & set(third.processes("RayTrainWorker")), 60, "the end of its workers")
    n.goes_on(2)
    n.row("a raylet is killed under a trial", "both trials train", time.monotonic() - clock)

    clock = time.monotonic()
    fourth.end()
    n.workers.remove(fourth)
    stranger = n.join(15, before=(f"mount -t tmpfs none {home}/studies",))
    n.says(": the study's folder is")  # not there, or not the same: an empty one may have been made by then
    n.row("a machine dies, another without the shared folder comes", "it is found out and left alone", time.monotonic() - clock)
    n.workers.append(n.join(16))
    clock = time.monotonic()
    n.goes_on(2)
    n.row("a sound one comes", "both trials train", time.monotonic() - clock)
    stranger.end()

    clock = time.monotonic()
    n.database.stop()
    time.sleep(5)
    n.database.start()
    n.goes_on(2)
    n.row("PostgreSQL crashes and is away for 5 s", "both trials train", time.monotonic() - clock)
    clock = time.monotonic()
    n.tracking.kill()
    n.goes_on(2)
    n.row("MLflow is killed", "both trials train", time.monotonic() - clock)
    n.tracking.start()

    clock = time.monotonic()
    n.head.shell(f"source cluster/env.sh && ray job stop {n.job}")
    assert "Nothing is lost: run it again to go on from here" in n.output()
    n.row("ray job stop", "stopped in good order", time.monotonic() - clock)
    clock, before = time.monotonic(), n.job
    keeper = n.head.start("keeper.txt", "cluster/submit.sh", "--keep", str(n.folder / "slow.yaml"))
    n.goes_on(2)
    n.job = n.newest_job()
    assert n.job != before
    n.row("the same command once more", "both trials train", time.monotonic() - clock)

    clock = time.monotonic()
    n.head.kill("ray")
    until(lambda: not any(n.members().values()), 120, "the end of those who trained")
    n.row("everything of Ray on the head is killed", "nobody trains", time.monotonic() - clock)
    clock = time.monotonic()
    n.start_head()
    n.goes_on(2)
    n.row("the head is started again", "both trials train", time.monotonic() - clock)
    n.head.shell(f"source cluster/env.sh && ray job stop {n.newest_job()}")
    assert keeper.wait(60) == 130, n.head.log("keeper.txt")

    trials, clock = len(trials_of(home, "small")), time.monotonic()
    n.submit("--trials", str(trials))
    until(lambda: f"{trials}/{trials} trials" in n.output(), 400, "the end", n.output)
    until(lambda: "succeeded" in n.head.shell(f"source cluster/env.sh && ray job status {n.job} 2>&1"), 60, "the end of the job", n.output)
    n.row("", "the end of the search", time.monotonic() - clock)
    assert [t.state for t in trials_of(home, "small")] == [TrialState.COMPLETE] * trials
    assert truth.study_problems(home, "small") == []
    assert truth.mlflow_problems(n.tracking.uri, home, "small") == []
    for trial in range(trials):
        assert [record.epoch for record in study_folder(home, "small").trial(trial).history()] == [*range(1, EPOCHS + 1)]
