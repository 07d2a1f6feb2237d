"""An outage of an hour, compressed: thousands of records while MLflow is away, and its database crashes while they are sent."""

from __future__ import annotations

import gc
import os
import signal
import statistics
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from postgres_server import Server as Database
from postgres_server import needs_postgres, started
from test_tracking_server import PATIENCE, Server, running, wait_for

from guidino_tune.tracking import EpochRecord, MLflowTracker, StudySnapshot, TrialSnapshot
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.snapshots import EndedTrial

pytestmark = [pytest.mark.timeout(600), needs_postgres]

TRIALS, EPOCHS = 50, 100
"""5,000 records."""


class History(list[EpochRecord]):
    """A trial's epochs, of which one can see whether they are still in memory."""


def snapshot(number: int, epochs: int = EPOCHS, state: Any = "complete") -> TrialSnapshot:
    records = (EpochRecord(e, {"val_dice": e / 1000 + number, "train_loss_total": 1.0 / e}, 1.7e9 + 60 * e) for e in range(1, epochs + 1))
    ended = 1.7e9 + 60 * epochs if state == "complete" else None
    return TrialSnapshot(number, "GuiDINO-U", state, history=History(records), started=1.7e9, finished=ended)


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with started() as database:
        yield database


@pytest.fixture
def server(database: Database, tmp_path: Path) -> Iterator[Server]:
    with running(Server(tmp_path, database.url)) as server:
        yield server


def test_an_hour_without_mlflow_costs_nothing(server: Server, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"FIRST_WAIT": 0.1, "LONGEST_WAIT": 0.5, "GATHER": 0.0}.items():
        monkeypatch.setattr(f"guidino_tune.tracking.mlflow_tracker.{name}", seconds)
    told: list[str] = []
    tracker = MLflowTracker(server.uri, "outage", StudySnapshot("s"), tmp_path / "ledger.jsonl", tell=told.append)
    tracker.start()
    tracker.update(snapshot(0, 3, "running"))
    assert tracker.flush(PATIENCE), tracker.message

    server.kill()
    kept, made, seconds = list[weakref.ref[Any]](), list[float](), list[float]()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for number in range(TRIALS):
        for epochs in range(1, EPOCHS + 1):
            # The searcher's loop: an epoch of a trial, and its end.
            making = time.perf_counter()
            found = snapshot(number, epochs, "complete" if epochs == EPOCHS else "running")
            made.append(time.perf_counter() - making)
            ended = EndedTrial(number, "whole", lambda number=number: snapshot(number)) if epochs == EPOCHS else None  # type: ignore[misc]
            begun = time.perf_counter()
            tracker.update(found, ended)
            seconds.append(time.perf_counter() - begun)
        kept.append(weakref.ref(found.history))
        if not number:
            assert wait_for(lambda: bool(told), PATIENCE)
    del found
    assert statistics.median(seconds) < statistics.median(made)  # no more than to write down what is told, on whatever machine
    assert psutil.Process().memory_info().rss - before < 32 * 1024**2  # all of them would take 90 MB
    assert wait_for(lambda: tracker.failures > 2, PATIENCE)
    gc.collect()
    assert sum(history() is not None for history in kept) <= 1  # the rest is in the study's folder
    assert tracker.pending <= TRIALS + 1
    assert (tmp_path / "ledger.jsonl").stat().st_size < 10_000
    assert all("MLflow is away" in line for line in told)
    assert len(told) <= 3  # once for each reason

    server.start()
    sent = f'"epoch": {EPOCHS}'
    assert wait_for(lambda: sent in (tmp_path / "ledger.jsonl").read_text(), PATIENCE), tracker.message
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGSTOP)  # else all were sent before the database is down
    assert (tmp_path / "ledger.jsonl").read_text().count(sent) < TRIALS
    database.stop()  # as a crash, in the middle of what is sent
    os.killpg(server.process.pid, signal.SIGCONT)
    failed = wait_for(lambda: tracker.failures > 0, 60)
    database.start()
    assert failed, tracker.message
    assert tracker.close(2 * PATIENCE), tracker.message

    client = connect(server.uri, 30)
    runs = client.search_runs([client.get_experiment_by_name("outage").experiment_id], max_results=1000)
    by_number = {run.data.tags.get("guidino.trial"): run for run in runs}
    assert len(runs) == len(by_number) == TRIALS + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    for number in (0, 1, TRIALS // 2, TRIALS - 1):
        for key in ("val_dice", "train_loss_total"):
            points = client.get_metric_history(by_number[str(number)].info.run_id, key)
            assert [(point.step, point.timestamp) for point in points] == [(e, int(1000 * (1.7e9 + 60 * e))) for e in range(1, EPOCHS + 1)]
    assert [run.data.metrics["best_val_dice"] for run in (by_number[str(n)] for n in range(TRIALS))] == [n + 0.1 for n in range(TRIALS)]
