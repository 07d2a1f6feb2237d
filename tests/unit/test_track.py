"""The command ``track`` on a study whose images are gone, and what a search does when MLflow is away at its start."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from guidino_tune import paths, track
from guidino_tune.errors import UserError
from guidino_tune.space.space import read_space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.tracking import TrialSnapshot
from guidino_tune.tracking.client import as_key, connect
from guidino_tune.tracking.ledger import Ledger
from guidino_tune.tracking.links import page_address
from guidino_tune.tracking.missing import missing
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows import track as sending


def make_study(name: str = "small", trials: int = 2) -> StudyFolder:
    definition = {
        "study": {"name": name, "trials": trials, "sampler": "random"},
        "experiment": {"data": {"kind": "folder", "root": "/gone/images"}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet"}},
        "space": {"training.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    }
    space = read_space(definition, source="test")
    folder = StudyFolder(paths.studies() / name)
    study = open_study(space, folder)
    study.set_user_attr("data_fingerprint", "ab" * 32)
    study.set_user_attr("data", {"num_train": 8, "num_validation": 2, "constant_mask_dice": 0.25})
    for _ in range(trials):
        one = study.ask()
        suggest(space, one)
        place = folder.trial(one.number)
        place.pictures.mkdir(parents=True)
        (place.pictures / "case_epoch0003.png").write_bytes(b"not really a picture")
        for epoch in range(1, 4):
            one.report(epoch / 10, epoch)
            place.append_history(EpochRecord(epoch, {"val_dice": epoch / 10}, 1.7e9 + epoch))
        study.tell(one, 0.3)
    return folder


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


Shown = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shown(home: Path, empty_mlflow: Path, capsys: pytest.CaptureFixture[str]) -> Shown:
    home.mkdir()
    shutil.copy(empty_mlflow, home)

    def call(*argv: str) -> tuple[int, str, str]:
        code = track.main(list(argv))
        return code, *capsys.readouterr()

    return call


def test_show_and_flush(shown: Shown, home: Path, closed_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_study()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
    code, out, _ = shown("small")
    assert code == 1
    assert "small: 2 trials, 6 epochs, 3 files, the study's own run not yet in MLflow" in out
    assert "connection refused" in out
    assert "track small --flush" in out
    code, out, _ = shown("small", "--flush")
    assert code == 1
    assert "connection refused" in out

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for _ in range(2):
        assert shown("small", "--flush") == (0, "small: everything is in MLflow\n", "")
    code, out, _ = shown("small")
    assert (code, out.splitlines()[0]) == (0, "small: everything is in MLflow")
    client = connect(f"sqlite:///{home}/mlflow.db")
    runs = {
        run.data.tags.get("guidino.trial"): run for run in client.search_runs([client.get_experiment_by_name("guidino_tune").experiment_id])
    }
    assert set(runs) == {None, "0", "1"}
    assert [(p.step, p.value) for p in client.get_metric_history(runs["1"].info.run_id, "val_dice")] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(client.list_artifacts(runs["1"].info.run_id, "pictures")) == 1
    profile = json.loads(runs[None].inputs.dataset_inputs[0].dataset.profile)
    assert (profile, runs[None].data.metrics["constant_mask_dice"]) == ({"num_train": 8, "num_validation": 2}, 0.25)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}

    # A ledger that is lost costs a second sending, but no second point.
    StudyFolder(paths.studies() / "small").ledger.unlink()
    assert shown("small", "--flush")[0] == 0
    assert len(client.get_metric_history(runs[None].info.run_id, "trials_complete")) == 1
    assert len(client.search_runs([runs[None].info.experiment_id])) == 3


def test_files_count_by_what_is_in_them(shown: Shown) -> None:
    folder = make_study()
    assert shown("small", "--flush")[0] == 0
    folder.reports.mkdir()
    for text in ("first", "other"):
        (folder.reports / "compare.md").write_text(text)
        code, out, _ = shown("small")
        assert (code, out.splitlines()[0]) == (1, "small: 1 file not yet in MLflow")
        assert shown("small", "--flush")[0] == 0
        assert shown("small")[0] == 0
    (folder.trial(1).pictures / "case_epoch0003.png").write_bytes(b"drawn again")
    assert shown("small")[1].startswith("small: 1 trial, 1 file not yet in MLflow")


def test_another_mlflow_has_nothing_of_it(
    shown: Shown, home: Path, tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study()
    assert shown("small", "--flush")[0] == 0
    shutil.copy(empty_mlflow, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    code, out, _ = shown("small")
    assert code == 1
    missing = f"2 trials, 6 epochs, 4 files, the study's own run (they were sent to sqlite:///{home}/mlflow.db) not yet in MLflow"
    assert out.startswith(f"small: {missing}")
    assert shown("small", "--flush")[0] == 0
    assert shown("small")[0] == 0


def test_results_whose_names_mlflow_refuses_are_sent_once(tmp_path: Path) -> None:
    trial = TrialSnapshot(0, "a", "complete", results={"test_dice (mean)": 0.5})
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.note("0", params=True, status="FINISHED", tags={"guidino.state": "COMPLETE"}, metrics={as_key("test_dice (mean)"): 0.5})
    ledger.note("study", params=True, status="FINISHED")
    assert not missing(ledger, [trial], (), "http://here")


def test_one_study_that_cannot_be_read_hides_no_other(shown: Shown) -> None:
    make_study("one", trials=1)
    broken = make_study("broken", trials=1)
    broken.definition.write_text("study: [")
    code, out, _ = shown("--all")
    assert code == 2
    assert "one: 1 trial" in out


def test_all_studies_and_one_that_is_searched(shown: Shown) -> None:
    for name in ("one", "two"):
        make_study(name, trials=1)
    with StudyFolder(paths.studies() / "two").lock():
        code, out, _ = shown("--all", "--flush")
        assert code == 2
        assert "one: everything is in MLflow" in out
        assert "another search works on this study" in " ".join(out.split())
        assert "a search works on it" in shown("two")[1]
        code, _, err = shown("two", "--flush")
        assert code == 2
        assert "another search works on this study" in err
    assert shown("--all", "--flush")[0] == 0


@pytest.mark.parametrize("argv", [[], ["small", "--all"], ["smal"]])
def test_mistakes(shown: Shown, argv: list[str]) -> None:
    make_study(trials=1)
    code, out, err = shown(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "  -> " in err


@pytest.mark.parametrize(("command", "needed"), [(["export", "small", "--output", "-"], ""), (["track", "small"], "mlflow")])
def test_a_study_is_read_without_what_trains(home: Path, empty_mlflow: Path, command: list[str], needed: str) -> None:
    make_study()
    shutil.copy(empty_mlflow, home)
    code = (
        f"import sys, guidino_tune.{command[0]} as command; command.main({command[1:]}); "
        "print('LOADED', *sorted({'torch', 'ray', 'transformers', 'monai', 'mlflow'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(run.stdout) > 60, run.stderr
    assert run.stdout.splitlines()[-1] == f"LOADED {needed}".strip()


class Answers(BaseHTTPRequestHandler):
    """An MLflow server without experiments."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


def console() -> Console:
    return Console(width=200, record=True, file=open("/dev/null", "w"))


def test_at_the_start_spool_goes_on_and_stop_stops(closed_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port.replace("://", "://me:geheim-123@"))
    sending.await_mlflow("spool", console())
    with pytest.raises(UserError, match="connection refused") as caught:
        sending.await_mlflow("stop", console())
    assert "tracking `spool`" in caught.value.todo
    assert "geheim" not in str(caught.value)


def test_at_the_start_wait_waits(closed_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
    monkeypatch.setattr(sending, "PAUSE", 0.1)
    seen, servers = console(), list[HTTPServer]()

    def start() -> None:
        servers.append(HTTPServer(("127.0.0.1", int(closed_port.rpartition(":")[2])), Answers))
        servers[0].serve_forever(0.05)

    threading.Timer(1.5, start).start()
    sending.await_mlflow("wait", seen)
    assert servers, "it did not wait"
    servers[0].shutdown()
    servers[0].server_close()
    text = seen.export_text()
    assert text.count("connection refused") == 1
    assert "MLflow answers" in text


def test_ctrl_c_leaves_the_waiting(closed_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
    monkeypatch.setattr(sending.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sending.await_mlflow("wait", console())


def test_a_study_elsewhere_is_sent_and_not_one_of_its_name_here(
    shown: Shown, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "other"))
    elsewhere = make_study(trials=1)
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    here = make_study(trials=2)
    code, out, _ = shown(str(elsewhere.path), "--flush")
    assert (code, out.strip().splitlines()[-1]) == (0, f"{elsewhere.path}: everything is in MLflow")
    assert elsewhere.ledger.exists()
    assert not here.ledger.exists()


def test_another_experiment_takes_new_studies_and_leaves_those_that_are_in_one(
    shown: Shown, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study("early")
    assert shown("early", "--flush")[0] == 0
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team-polyps")
    make_study("late")
    for _ in range(2):
        assert shown("--all", "--flush")[0] == 0
    client = connect(f"sqlite:///{home}/mlflow.db")
    where = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            where.setdefault(run.data.tags["guidino.study"], []).append(experiment.name)
    assert where == {"early": ["guidino_tune"] * 3, "late": ["team-polyps"] * 3}
    pages = [page_address(f"sqlite:///{home}/mlflow.db", name, "id") for name in ("guidino_tune", "team-polyps", "none")]
    assert [page.partition("/runs")[0].rpartition("/")[2] for page in pages] == [
        *(client.get_experiment_by_name(name).experiment_id for name in ("guidino_tune", "team-polyps")),
        "",
    ]
