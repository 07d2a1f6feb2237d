"""One search on machines that join, are cut off, die and come back, and that outlives its servers, its job and its head.

Trials are groups of two workers on two machines. What happened, and how long it took, is printed as a table.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chaos_truth as truth
import pytest
import yaml
from machines import HERE, NET, ROOT, Machine, machines, missing, until
from optuna.trial import TrialState
from postgres_server import Server, needs_postgres, started
from small_searches import slow_space, study_folder, trials_of

pytestmark = [
    needs_postgres,
    pytest.mark.timeout(2400),
]

SMALL = "--object-store-memory=100000000"
HEAD = f"{NET}.10"
EPOCHS = 150


class Tracking:
    """An MLflow server for all machines, as ``cluster/mlflow.sh`` starts it."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.database, self.uri = folder, database, f"http://{HERE}:5005"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        here = ("--host", HERE, "--port", "5005", "--allowed-hosts", f"{HERE}:5005")
        environment = os.environ | {"GUIDINO_TUNE_HOME": str(self.folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "mlflow.txt").open("ab") as log:
            command = ["bash", str(ROOT / "cluster" / "mlflow.sh"), self.database, *here]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        until(self.answers, 180, "MLflow to answer", (self.folder / "mlflow.txt").read_text)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """With its workers, which are a group of their own."""
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


class Night:
    """The search and its cluster, what is known of both, and the table of what happened."""

    def __init__(self, folder: Path, home: Path, make: Callable[..., Machine], database: Server, tracking: Tracking) -> None:
        self.folder, self.home, self.make, self.database, self.tracking = folder, home, make, database, tracking
        self.environment = {
            "GUIDINO_TUNE_HOME": str(home), "GUIDINO_TUNE_STORAGE": os.environ["GUIDINO_TUNE_STORAGE"],
            "MLFLOW_TRACKING_URI": tracking.uri, "PYTHONPATH": str(Path(__file__).parent),
            "RAY_memory_monitor_refresh_ms": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.job, self.seen = "", truth.Saved()
        self.head = make(10, folder, self.environment)
        self.workers: list[Machine] = []

    def row(self, event: str, what: str, seconds: float) -> None:
        """A line of the table, which stays in the test's folder too."""
        line = f"{event:<58} {what:<44} {seconds:6.1f} s"
        print(line, flush=True)
        with (self.folder / "table.txt").open("a") as file:
            print(line, file=file)
        self.look()

    def look(self) -> None:
        """No epoch that was on the disk is ever trained once more."""
        now = truth.saved(self.home, "small")
        assert truth.trained_again(self.seen, now) == []
        self.seen = now

    def start_head(self) -> None:
        """Returns when it is up."""
        log = self.head.folder / "head.txt"
        begun = log.read_text().count("Ray runtime started") if log.exists() else 0
        self.head.start("head.txt", "cluster/head.sh", "--num-cpus=0", "--num-gpus=0", f"--node-ip-address={HEAD}", "--block", SMALL)
        until(lambda: self.head.log("head.txt").count("Ray runtime started") > begun, 120, "the head", lambda: self.head.log("head.txt"))

    def join(self, number: int, before: tuple[str, ...] = ()) -> Machine:
        """A machine of one CPU, whose node joins again whenever it was given up."""
        machine = self.make(number, self.folder, self.environment, before)
        token = machine.home / ".ray" / "auth_token"
        token.parent.mkdir()
        token.touch(mode=0o600)
        token.write_bytes((self.head.home / ".ray" / "auth_token").read_bytes())
        machine.start("worker.txt", "cluster/worker.sh", "--rejoin", HEAD, "--num-cpus=1", SMALL)
        return machine

    def submit(self, *options: str) -> None:
        """The command of a user, who does not wait for its end."""
        printed = self.head.run("cluster/submit.sh", "--no-wait", str(self.folder / "slow.yaml"), *options)
        (self.job,) = re.findall(r"'(raysubmit_\w+)' submitted", printed)

    def newest_job(self) -> str:
        """Its id; each has a log on the head."""
        found = (self.head.folder / "ray").glob("session_2*/logs/job-driver-*.log")
        newest = max(found, key=lambda file: file.stat().st_mtime, default=Path("job-driver-.log"))
        return newest.stem.removeprefix("job-driver-")

    def output(self) -> str:
        """What the search has printed, in one line; empty before."""
        return " ".join(self.lines())

    def lines(self) -> list[str]:
        """The same in its lines."""
        found = [file.read_text() for file in (self.head.folder / "ray").glob(f"session_2*/logs/job-driver-{self.job}.log")]
        return [" ".join(line.split()) for line in "\n".join(found).splitlines()]

    def says(self, text: str, seconds: float = 300) -> float:
        """Waits until the search says it, once more if it has before; gives the seconds."""
        before = self.output().count(text)

        def said() -> bool:
            output = self.output()
            assert not [line for line in self.lines() if line.startswith(("error:", "Traceback"))], output
            return output.count(text) > before

        return until(said, seconds, f"the search to say {text!r}", self.output)

    def epochs(self) -> dict[int, int]:
        """The newest epoch on the disk, of each trial."""
        found: dict[int, int] = {}
        for trial, epoch in truth.saved(self.home, "small"):
            found[trial] = max(epoch, found.get(trial, 0))
        return found

    def goes_on(self, trials: int, seconds: float = 300) -> float:
        """Waits until so many trials have trained an epoch from now on; gives the seconds."""
        before = self.epochs()

        def further() -> bool:
            now = self.epochs()
            return sum(now[trial] >= before.get(trial, 0) + 1 for trial in now) >= trials

        return until(further, seconds, f"{trials} trials to go on", self.output)

    def members(self) -> dict[str, list[int]]:
        """Ids of the processes that train, by machine."""
        return {m.address: m.processes("RayTrainWorker") for m in self.workers}


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
        made = Night(tmp_path, home, make, database, tracking)
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
    n.says("the study's folder is not there")
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
    until(lambda: "SUCCEEDED" in n.head.shell(f"source cluster/env.sh && ray job status {n.job}"), 60, "the end of the job", n.output)
    n.row("", "the end of the search", time.monotonic() - clock)
    assert [t.state for t in trials_of(home, "small")] == [TrialState.COMPLETE] * trials
    assert truth.study_problems(home, "small") == []
    assert truth.mlflow_problems(n.tracking.uri, home, "small") == []
    for trial in range(trials):
        assert [record.epoch for record in study_folder(home, "small").trial(trial).history()] == [*range(1, EPOCHS + 1)]
