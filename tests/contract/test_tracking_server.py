"""Tracking in real processes: a server that is killed and comes back, a server that hangs, a database that is deleted."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from guidino_tune.tracking import DatasetInfo, EpochRecord, MLflowTracker, StudySnapshot, TrialSnapshot, log_model_run
from guidino_tune.tracking.client import connect

pytestmark = pytest.mark.timeout(600)

PATIENCE = 120
"""Seconds in which a server has answered, also on a machine that does ten other things: what is waited for ends the wait."""


class Server:
    def __init__(self, folder: Path, database: str = "", artifacts: str = "") -> None:
        self.artifacts = artifacts or str(folder / "art")
        self.database = database or f"sqlite:///{folder}/m.db"
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **variables: str) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.database, "--artifacts-destination", self.artifacts]
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **variables,
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the server and its workers: a group of its own
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running(server: Server, **variables: str) -> Iterator[Server]:
    """Starts a server, with more in its environment; it is ended with the block, also if it never answered."""
    try:
        server.start(**variables)
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(tmp_path: Path, empty_mlflow: Path) -> Iterator[Server]:
    shutil.copy(empty_mlflow, tmp_path / "m.db")
    with running(Server(tmp_path)) as server:
        yield server


def trial(number: int, epochs: int, **more: Any) -> TrialSnapshot:
    history = tuple(EpochRecord(e, {"val_dice": e / 100, "train_loss": 1.0 / e}, 1.7e9 + e) for e in range(1, epochs + 1))
    return TrialSnapshot(number, "GuiDINO-U", history=history, params={"training.lr": 1e-4, "data.root": ""}, searched={"x": 1}, **more)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():
        time.sleep(0.05)
    return condition()


def test_server_dies_and_comes_back(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guidino_tune.tracking.mlflow_tracker.LONGEST_WAIT", 2.0)  # the test does not wait half a minute
    picture = tmp_path / "case1_epoch0001.png"
    Image.new("RGB", (320, 160), "blue").save(picture)
    study = StudySnapshot("s", datasets=(DatasetInfo("demo", "abc", 3, 1),))
    tracker = MLflowTracker(server.uri, "contract", study, tmp_path / "ledger.jsonl")
    tracker.start()
    tracker.update(trial(0, 3, pictures=(picture,)))
    assert tracker.flush(PATIENCE), tracker.message

    server.kill()
    start = time.perf_counter()
    for epoch in range(4, 10):
        tracker.update(trial(0, epoch, pictures=(picture,)))
    tracker.update(trial(1, 5, state="complete"))
    assert time.perf_counter() - start < 0.05
    assert wait_for(lambda: "connection refused" in (tracker.last_error or ""), PATIENCE), tracker.last_error
    assert tracker.pending == 2

    server.start()
    assert wait_for(lambda: tracker.pending == 0, PATIENCE), tracker.message  # by itself, while the search goes on
    assert tracker.last_error is None
    assert tracker.close(20), tracker.message
    assert server.uri in tracker.message

    client = connect(server.uri)
    experiment = client.get_experiment_by_name("contract").experiment_id
    runs = {r.data.tags.get("guidino.trial"): r for r in client.search_runs([experiment])}
    assert len(client.search_runs([experiment])) == len(runs) == 3
    assert (runs[None].info.status, runs["1"].info.status, runs["0"].info.status) == ("FINISHED", "FINISHED", "RUNNING")
    steps = [m.step for m in client.get_metric_history(runs["0"].info.run_id, "val_dice")]
    assert steps == list(range(1, 10))
    assert runs["0"].data.params["data.root"] == ""
    assert [a.path for a in client.list_artifacts(runs["0"].info.run_id, "pictures")] == ["pictures/case1_epoch0001.png"]
    assert len(client.list_artifacts(runs["0"].info.run_id, "images")) == 2
    # What a browser asks for when it shows the picture.
    address = f"{server.uri}/get-artifact?path=pictures/case1_epoch0001.png&run_uuid={runs['0'].info.run_id}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.read() == picture.read_bytes()

    model = tmp_path / "export"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"w" * 1000)
    run_id, version = log_model_run(server.uri, "contract", "retrain", {"a": 1}, {"val_dice": 0.9}, [], model, "demo-model", {})
    assert version == "1"
    assert client.get_model_version("demo-model", "1").run_id == run_id
    assert {Path(a.path).name for a in client.list_artifacts(run_id, "model")} == {"MLmodel", "weights.safetensors"}
    assert capfd.readouterr() == ("", "")


def test_hanging_server_does_not_hold_the_driver(tmp_path: Path) -> None:
    """A server that takes connections and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracker = MLflowTracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "e", StudySnapshot("s"), tmp_path / "l.jsonl")
        tracker.start()
        tracker.update(trial(0, 3))
        start = time.perf_counter()
        assert not tracker.close(1.0)
        assert time.perf_counter() - start < 2.5
        assert "same command" in tracker.message


RECREATE = """
import sys
from pathlib import Path
from typing import Any
from guidino_tune.tracking import *
t = MLflowTracker(f"sqlite:///{sys.argv[1]}/m.db", "e", StudySnapshot("s"), Path(sys.argv[1], "ledger.jsonl"), Path(sys.argv[1], "art"))
t.start()
t.update(TrialSnapshot(0, "x", "complete", history=(EpochRecord(1, {"val_dice": 0.5}, 1.7e9),)))
t.flush(120)
assert t.close(30), t.message
import mlflow
(run,) = mlflow.MlflowClient(t.uri).search_runs(["1"], "tags.`guidino.trial` = '0'")
print(run.info.status, run.data.metrics["val_dice"])
"""


def test_deleted_database_is_filled_again_and_nothing_is_printed(tmp_path: Path) -> None:
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", RECREATE, str(tmp_path)], capture_output=True, text=True, check=True)
        assert (run.stdout, run.stderr) == ("FINISHED 0.5\n", "")
        (tmp_path / "m.db").unlink()
