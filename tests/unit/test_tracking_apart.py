"""The tracker without any MLflow to speak to."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
from test_tracking_mlflow import STUDY, trial

from guidino_tune.errors import UserError
from guidino_tune.tracking import MLflowTracker
from guidino_tune.tracking import client as client_module


def test_nothing_raises_or_blocks_when_mlflow_is_away(tmp_path: Path) -> None:
    tracker = MLflowTracker("http://user:secret@127.0.0.1:9", "e", STUDY, tmp_path / "l.jsonl")
    threads = threading.active_count()
    start = time.perf_counter()
    tracker.start()
    for epoch in range(200):
        tracker.update(trial(epoch % 8, (0.1,)))
        tracker.update_study(STUDY)
    assert time.perf_counter() - start < 0.5
    assert threading.active_count() <= threads + 1
    start = time.perf_counter()
    assert not tracker.close(2.5)
    assert time.perf_counter() - start < 5
    assert tracker.pending == 9  # 8 trials and the study: newer snapshots replaced older ones
    assert "same command" in tracker.message
    assert "secret" not in tracker.message + str(tracker.last_error)
    tracker.update(trial(0))  # after the end: no error either


def test_a_broken_mlflow_reaches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("bug in mlflow")

    monkeypatch.setattr("guidino_tune.tracking.mlflow_tracker.connect", explode)
    tracker = MLflowTracker("http://127.0.0.1:9", "e", STUDY, tmp_path / "l.jsonl")
    tracker.start()
    tracker.update(trial(0))
    assert not tracker.close(0.5)
    assert "bug in mlflow" in tracker.message
    assert capsys.readouterr() == ("", "")


def test_never_started_and_no_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MLflowTracker("http://127.0.0.1:9", "e", STUDY, tmp_path / "l.jsonl")
    tracker.update(trial(0))
    assert not tracker.close(5)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        MLflowTracker(None, "e", STUDY, tmp_path / "l.jsonl")


def test_git_commit_is_of_our_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "outer" / "venv" / "tracking"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path / "outer")], check=True)
    monkeypatch.setattr(client_module, "__file__", str(package / "client.py"))
    client_module.code_tags.cache_clear()
    try:
        assert "mlflow.source.git.commit" not in client_module.code_tags()
    finally:
        client_module.code_tags.cache_clear()
