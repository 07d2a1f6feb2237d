"""A cluster of such machines with its servers, and a search on it, as a person starts them: by the scripts of ``cluster/``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import chaos_truth as truth
from machines import HERE, NET, ROOT, Machine, until

SMALL = "--object-store-memory=100000000"
HEAD = f"{NET}.10"


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


class Cluster:
    """A search and its cluster, what is known of both, and the table of what happened.

    Args:
        folder: Of the machines, and of the space ``slow.yaml``.
        home: Of the search, on all machines.
        make: See ``machines``.
        variables: Of all commands.
    """

    def __init__(self, folder: Path, home: Path, make: Callable[..., Machine], variables: Mapping[str, str]) -> None:
        self.folder, self.home, self.make = folder, home, make
        self.environment = {
            "GUIDINO_TUNE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parent),
            "RAY_memory_monitor_refresh_ms": "0", "OMP_NUM_THREADS": "1", **variables,
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
