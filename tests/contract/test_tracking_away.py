"""An MLflow that is slow, refuses, has a full disk or loses its answers: everything arrives later, in order, and once."""

from __future__ import annotations

import http.client
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import pytest
from PIL import Image
from test_tracking_server import PATIENCE, Server, running, trial, wait_for

from guidino_tune import paths, track
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space, read_space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.tracking import DatasetInfo, EpochRecord, MLflowTracker, StudySnapshot, log_model_run
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.flavour import CHAMPION

pytestmark = pytest.mark.timeout(600)


@dataclass
class Proxy:
    """Stands before an MLflow server, and may spoil its answers.

    Attributes:
        target: Address of the server.
        status: Answer with this HTTP status instead of asking the server.
        body: Of that answer.
        delay: Seconds before an answer.
        late: Seconds before the next creation of a run reaches the server.
        lossy: Answers of requests that are new are lost: the server has carried them out, the connection breaks.
        losing: So is every answer to a request whose path ends like this.
    """

    target: str
    status: int = 0
    body: str = ""
    delay: float = 0.0
    late: float = 0.0
    lossy: bool = False
    losing: str = ""
    requests: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    seen: set[tuple[str, bytes]] = field(default_factory=set)

    def start(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # the client has left

        self.server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.port = self.server.server_port
        self.uri = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        line = f"{handler.command} {handler.path}"
        self.requests.append(line)
        if self.status:
            echo = f"{self.body} {handler.headers.get('Authorization', '')}".encode()
            self.send(handler, self.status, echo, "text/html")
            return
        if self.late and line.endswith("/runs/create"):
            seconds, self.late = self.late, 0.0
            time.sleep(seconds)
        connection = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=30)
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in ("host", "connection")}
        connection.request(handler.command, handler.path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
        self.passed.append(line)
        new = (line, body) not in self.seen
        self.seen.add((line, body))
        if (self.lossy and new) or (self.losing and line.endswith(self.losing)):
            handler.close_connection = True
            handler.connection.shutdown(2)
            return
        time.sleep(self.delay)
        self.send(handler, reply.status, content, reply.headers.get("Content-Type", ""))

    def send(self, handler: BaseHTTPRequestHandler, status: int, content: bytes, kind: str) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    shutil.copy(empty_mlflow, server.folder / "m.db")
    with running(server):
        yield server


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr("guidino_tune.tracking.mlflow_tracker.FIRST_WAIT", 0.1)
    monkeypatch.setattr("guidino_tune.tracking.mlflow_tracker.LONGEST_WAIT", 0.3)
    monkeypatch.setattr("guidino_tune.tracking.mlflow_tracker.GATHER", 0.0)
    proxy = Proxy(server.uri)
    proxy.start()
    yield proxy
    proxy.stop()


def stored(server: Server, experiment: str) -> tuple[Any, dict[str | None, Any]]:
    """A client, and all runs by the number of their trial; ``None`` is the study's. Fails when one is there twice."""
    client = connect(server.uri, 30)
    runs = list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))
    by_number = {run.data.tags.get("guidino.trial"): run for run in runs}
    assert len(by_number) == len(runs), [run.info.run_name for run in runs]
    return client, by_number


def points(client: Any, run: Any, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


STUDY = StudySnapshot("s", datasets=(DatasetInfo("demo", "abc", 3, 1),), metrics={"trials_complete": 1.0}, step=1, time=1.7e9)


def test_answers_that_take_longer_than_the_timeout_are_waited_for(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    tracker = MLflowTracker(proxy.uri, "slow", STUDY, tmp_path / "l.jsonl", timeout=1)
    tracker.start()
    assert tracker.flush(PATIENCE), tracker.message
    proxy.delay = 1.2
    tracker.update(trial(0, 3))
    # A machine that was slow before has made the tracker patient already: it has its answer then.
    assert wait_for(lambda: "no answer in time" in (tracker.last_error or "") or tracker.pending == 0, PATIENCE)
    assert tracker.flush(PATIENCE), tracker.message
    proxy.delay = 0.0
    tracker.update(trial(0, 5, state="complete", finished=1.7e9 + 9))
    assert tracker.close(30), tracker.message
    assert tracker.last_error is None
    client, runs = stored(server, "slow")
    assert points(client, runs["0"], "val_dice") == [(epoch, epoch / 100) for epoch in range(1, 6)]
    assert (runs["0"].info.status, runs[None].info.status) == ("FINISHED", "FINISHED")


def test_a_creation_that_is_carried_out_late_leaves_no_second_run(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """The first request for a run is still under way when we look for the run, find none and ask again."""
    tracker = MLflowTracker(proxy.uri, "late", STUDY, tmp_path / "l.jsonl", timeout=1)
    tracker.start()
    assert tracker.flush(PATIENCE), tracker.message
    proxy.late = 4.0
    tracker.update(trial(0, 3))
    assert tracker.flush(PATIENCE), tracker.message
    created = "POST /api/2.0/mlflow/runs/create"
    assert wait_for(lambda: proxy.passed.count(created) == 3, PATIENCE)  # of the study, and twice of the trial
    tracker.update(trial(0, 4, state="complete"))
    assert tracker.close(30), tracker.message
    client, runs = stored(server, "late")
    assert points(client, runs["0"], "val_dice") == [(epoch, epoch / 100) for epoch in range(1, 5)]


def test_lost_answers_store_nothing_twice(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    picture = tmp_path / "case1_epoch0001.png"
    Image.new("RGB", (32, 16), "blue").save(picture)
    proxy.lossy = True
    tracker = MLflowTracker(proxy.uri, "lost", STUDY, tmp_path / "l.jsonl")
    tracker.start()
    tracker.update(trial(0, 3, pictures=(picture,)))
    assert tracker.flush(PATIENCE), tracker.message
    tracker.update_study(StudySnapshot("s", datasets=STUDY.datasets, metrics={"trials_complete": 2.0}, step=2, time=1.7e9 + 9))
    tracker.update(trial(0, 6, state="complete", results={"test_dice": 0.5}, pictures=(picture,)))
    assert tracker.flush(PATIENCE), tracker.message
    proxy.lossy = False
    assert tracker.close(30), tracker.message
    client, runs = stored(server, "lost")
    assert points(client, runs["0"], "val_dice") == [(epoch, epoch / 100) for epoch in range(1, 7)]
    assert points(client, runs["0"], "test_dice") == [(6, 0.5)]
    assert points(client, runs[None], "trials_complete") == [(1, 1.0), (2, 2.0)]
    assert [len(run.inputs.dataset_inputs) for run in runs.values()] == [1, 1]
    assert len(client.list_artifacts(runs["0"].info.run_id, "images")) == 2


REFUSALS = [
    (401, "You are not authenticated.", "wrong or missing credentials"),
    (403, "Permission denied", ""),  # told before
    (507, "Insufficient Storage", "its disk is full"),
    (500, "database or disk is full", "HTTP 500"),
    (404, "<html>no such backend</html>", "HTTP 404"),
    (400, "<html>bad gateway, in a way</html>", "HTTP 400"),
]


def test_refusals_are_told_once_and_lose_nothing(server: Server, proxy: Proxy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    uri = proxy.uri.replace("://", "://me:geheim-123@")
    tracker = MLflowTracker(uri, "refused", STUDY, tmp_path / "l.jsonl", tell=told.append)
    tracker.start()
    tracker.update(trial(0, 1))
    assert tracker.flush(PATIENCE), tracker.message
    for epochs, (status, body, words) in enumerate(REFUSALS, 2):
        told.clear()
        proxy.status, proxy.body = status, body
        before = len(proxy.requests)
        tracker.update(trial(0, epochs))
        tracker.update(trial(epochs, 2, state="complete"))
        assert wait_for(lambda before=before: len(proxy.requests) - before > 4, PATIENCE)  # type: ignore[misc]
        assert len(told) == bool(words), told
        assert words in " ".join(told)
        assert tracker.pending >= 2
        assert "track s --flush" in tracker.message
        assert "geheim-123" not in " ".join([*told, tracker.message, str(tracker.last_error)])
        proxy.status = 0
        assert tracker.flush(PATIENCE), tracker.message
        assert not words or wait_for(lambda: "answers again" in told[-1], 20)
    assert tracker.close(30), tracker.message
    client, runs = stored(server, "refused")
    assert points(client, runs["0"], "val_dice") == [(epoch, epoch / 100) for epoch in range(1, 8)]
    assert {runs[str(number)].info.status for number in range(2, 8)} == {"FINISHED"}
    assert capfd.readouterr() == ("", "")


def test_a_slow_server_does_not_slow_the_driver(proxy: Proxy, tmp_path: Path) -> None:
    """No update waits for an answer."""
    proxy.delay = 0.2
    tracker = MLflowTracker(proxy.uri, "speed", STUDY, tmp_path / "l.jsonl", timeout=1)
    tracker.start()
    snapshots = [trial(number, 3) for number in range(4)]
    updates = []
    for epoch in range(1, 401):
        sum(number * number for number in range(40_000))  # lets the sender have its turns, as a driver does
        start = time.perf_counter()
        tracker.update(snapshots[epoch % 4])
        updates.append(time.perf_counter() - start)
    # One answer awaited would be 200 ms. The median, for a machine that does other work as well delays some of them.
    assert statistics.median(updates) < proxy.delay / 20
    assert tracker.pending >= 1  # it was at work all the time
    tracker.close(0)


FULL_DISK = """
import resource, signal, sys, time
from pathlib import Path
from guidino_tune.tracking import *
folder, told = Path(sys.argv[1]), []
tracker = MLflowTracker(f"sqlite:///{folder}/m.db", "e", StudySnapshot("s"), folder / "ledger.jsonl", folder / "art", tell=told.append)
tracker.start()
trial = lambda epochs: TrialSnapshot(0, "x", history=tuple(EpochRecord(e, {"val_dice": e / 1000}, 1.7e9 + e) for e in range(1, epochs + 1)))
tracker.update(trial(2))
assert tracker.flush(120), tracker.message
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # no file may grow: neither the database nor the ledger
tracker.update(trial(400))
while not told:
    time.sleep(0.05)
assert tracker.pending == 1
assert told[0].startswith(f"MLflow is away: sqlite:///{folder}/m.db: disk I/O error. "), told
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
assert tracker.close(60), tracker.message
assert "answers again" in told[1]
import mlflow
client = mlflow.MlflowClient(tracker.uri)
(run,) = client.search_runs(["1"], "tags.`guidino.trial` = '0'")
assert [p.step for p in client.get_metric_history(run.info.run_id, "val_dice")] == list(range(1, 401))
"""


def test_a_database_on_a_full_disk_is_filled_later_and_nothing_is_printed(tmp_path: Path, empty_mlflow: Path) -> None:
    shutil.copy(empty_mlflow, tmp_path / "m.db")
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def make_study(name: str, trials: int) -> StudyFolder:
    """A finished study on disk; its images are nowhere."""
    definition = {
        "study": {"name": name, "trials": trials, "sampler": "random"},
        "experiment": {"data": {"kind": "folder", "root": "/gone/images"}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet"}},
        "space": {"training.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    }
    space: Space = read_space(definition, source="test")
    folder = StudyFolder(paths.studies() / name)
    study = open_study(space, folder)
    study.set_user_attr("data_fingerprint", "ab" * 32)
    study.set_user_attr("data", {"num_train": 8, "num_validation": 2, "constant_mask_dice": 0.25})
    for _ in range(trials):
        one: optuna.Trial = study.ask()
        suggest(space, one)
        place = folder.trial(one.number)
        place.path.mkdir(parents=True)
        for epoch in range(1, 4):
            one.report(epoch / 10, epoch)
            place.append_history(EpochRecord(epoch, {"val_dice": epoch / 10}, 1.7e9 + epoch))
        study.tell(one, 0.3)
    return folder


@pytest.mark.parametrize("lost", ["/model-versions/create", "/registered-models/alias", "/runs/update"])
def test_a_version_whose_answer_is_lost_is_not_added_twice(server: Server, proxy: Proxy, tmp_path: Path, lost: str) -> None:
    """The server has carried the request out, and the connection breaks before it says so."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"w" * 1000)
    name = lost.strip("/").replace("/", "-")

    def log() -> tuple[str, str]:
        return log_model_run(proxy.uri, name, "m", {"a": 1}, {"val_dice": 0.9}, [], tmp_path / "model", name, {}, score=0.9)

    proxy.losing = lost
    with pytest.raises(UserError, match="the connection broke") as caught:
        log()
    assert "run the same command again" in caught.value.todo
    proxy.losing = ""
    run_id, version = log()
    client, runs = stored(server, name)
    assert ([one.version for one in client.search_model_versions(f"name = '{name}'")], version) == ([version], "1")
    assert [(run.info.run_id, run.info.status) for run in runs.values()] == [(run_id, "FINISHED")]
    assert str(client.get_model_version_by_alias(name, CHAMPION).version) == "1"
    proxy.requests.clear()
    assert log() == (run_id, "1")  # whole: nothing is sent any more
    assert [line for line in proxy.requests if not line.startswith("GET ") and not line.endswith("/runs/search")] == []


def test_a_sender_that_is_killed_is_continued_by_the_next(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study("killed", 6)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    proxy.delay = 0.1
    command = [sys.executable, "-m", "guidino_tune.track", "killed", "--flush"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert wait_for(lambda: len(proxy.passed) >= 15, PATIENCE), process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    proxy.delay = 0.0
    assert (track.main(["killed", "--flush"]), capsys.readouterr().out) == (0, "killed: everything is in MLflow\n")
    client, runs = stored(server, "guidino_tune")
    assert set(runs) == {None, *(str(number) for number in range(6))}
    assert all(points(client, run, "val_dice") == [(1, 0.1), (2, 0.2), (3, 0.3)] for number, run in runs.items() if number)
    assert points(client, runs[None], "trials_complete") == [(6, 6.0)]
    assert runs[None].data.metrics["constant_mask_dice"] == 0.25
    (data,) = runs[None].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("folder", ("ab" * 32)[:36])
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
