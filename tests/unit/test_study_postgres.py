"""A study in a real PostgreSQL that is started anew while it is driven."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from postgres_server import Server, needs_postgres, started
from test_study_driver import result
from training_helpers import search_space

from guidino_tune.errors import UserError
from guidino_tune.study import patient_storage
from guidino_tune.study.driver import Driver
from guidino_tune.study.lease import LEASE, read_lease
from guidino_tune.study.locking import Hold
from guidino_tune.study.store import StudyFolder, load_study, open_study

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_storage, "AGAIN", 0.1)


def drive(driver: Driver, trials: int, after: Callable[[int], None]) -> None:
    for number in range(trials):
        key = str(number)
        assert driver.stored(partial(driver.ask, key), None) is not None, driver.error
        for epoch in range(1, 7):
            if not driver.stored(partial(driver.report, key, result(epoch, 0.1 * epoch + 0.01 * number)), False):
                break
            after(number)
        driver.stored(partial(driver.tell, key, crashed=False), None)


@pytest.mark.parametrize("held", [False, True])
def test_a_database_that_is_started_anew_costs_nothing(
    held: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A crash in the middle of a transaction, a crash between two, and one that takes its time to come back."""
    space = search_space(first_trials=[], study={"trials": 12, "pruner": "none", "name": f"restarted-{held}"})
    folder = StudyFolder(tmp_path / "restarted")
    if held:  # as a driver does: it reads from memory, and writes together
        request.addfinalizer(folder.lock().close)
    driver = Driver(open_study(space, folder, server.url), space, folder, lambda *_: None)
    going, told = threading.Event(), list[str]()
    monkeypatch.setattr(patient_storage.log, "warning", lambda text, *values: told.append(text % values))

    def restarts() -> None:
        for pause in (0.0, 1.5, 0.0, 0.0):
            server.stop()
            time.sleep(pause)
            server.start()
            time.sleep(0.2)
        going.set()

    thread = threading.Thread(target=restarts)

    def after(number: int) -> None:
        if not thread.ident:
            thread.start()  # not before: the first trial of a process waits for imports
        going.wait(0.2)

    drive(driver, 12, after)
    thread.join()
    server.stop()  # and between two questions
    server.start()
    # A connection that breaks at the very end of the question for a trial may leave one behind, which the next run takes up.
    trials = [t for t in load_study(folder, server.url).get_trials() if t.state != TrialState.RUNNING]
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 12
    for trial in trials:
        assert trial.intermediate_values == pytest.approx(
            {e: 0.1 * e + 0.01 * trial.number for e in range(1, len(trial.intermediate_values) + 1)}
        )
    assert driver.remaining == 0
    assert told[:2] == ["the study's database does not answer: it is asked again, for 10 minutes", "the study's database is back"]
    again = Driver(open_study(space, folder, server.url), space, folder, lambda *_: None)
    assert again.remaining == 0


def test_one_that_stays_away_ends_the_driver_after_its_patience(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = search_space(first_trials=[], study={"trials": 3, "pruner": "none", "name": "away"})
    folder = StudyFolder(tmp_path / "away")
    driver = Driver(open_study(space, folder, server.url), space, folder, lambda *_: None)
    monkeypatch.setattr(patient_storage, "PATIENCE", 0.5)
    server.stop()
    try:
        assert driver.stored(lambda: driver.ask("a"), "otherwise") == "otherwise"
        assert isinstance(driver.error, optuna.exceptions.StorageInternalError)
    finally:
        server.start()


def test_what_a_database_refuses_is_not_asked_again(server: Server) -> None:
    storage = patient_storage.open_database(server.url)
    begun = time.monotonic()
    with pytest.raises(KeyError):
        storage.get_trial(10**6)
    study = optuna.create_study(storage=storage, study_name="twice")
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(storage=storage, study_name="twice")
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert time.monotonic() - begun < 10


def test_a_study_that_was_taken_over_meanwhile_is_not_written_to(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a driver on another machine, which reached the database before this one did."""
    space = search_space(first_trials=[], study={"trials": 3, "pruner": "none", "name": "taken"})
    folder = StudyFolder(tmp_path / "taken")
    study = open_study(space, folder, server.url)
    with Hold(folder.path / ".lock", "search", "wait") as held:
        held.lease(study)
        driver = Driver(study, space, folder, lambda *_: None)
        assert driver.ask("a") is not None
        monkeypatch.setattr(patient_storage, "LONG", 0.0)
        monkeypatch.setattr(patient_storage, "AGAIN", 5.0)
        server.stop()
        writing = threading.Thread(target=lambda: driver.stored(lambda: driver.report("a", result(1, 0.5)), False))
        writing.start()
        time.sleep(0.5)
        server.start()
        other = open_study(space, folder, server.url)
        other.set_user_attr(LEASE, {"who": "process 7 on elsewhere", "token": "its own"})
        writing.join(30)
        assert not writing.is_alive()
        assert isinstance(driver.error, UserError)
        assert "process 7 on elsewhere" in str(driver.error)
        assert not other.get_trials()[0].intermediate_values
    assert read_lease(other)["token"] == "its own"  # nor was that one's lease written over, or given back
