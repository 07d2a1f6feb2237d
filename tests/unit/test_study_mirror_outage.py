"""A driver's database whose answers are lost: what is in memory stays what is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError
from study_helpers import dice
from training_helpers import search_space

from guidino_tune.study import lease, optuna_private, patient_storage, store
from guidino_tune.study.driver import Driver
from guidino_tune.study.mirror import MirroredStorage
from guidino_tune.study.patient_storage import PatientStorage
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.study.trials import counted_at


class Unsteady(RDBStorage):
    """A database whose connection breaks once: before it has done the work of ``breaks``, or after it."""

    breaks, early = "", False

    def _create_new_trial(self, *args: Any, **kwargs: Any) -> FrozenTrial:
        return self._broken("create", partial(super()._create_new_trial, *args, **kwargs))

    def set_trial_state_values(self, *args: Any, **kwargs: Any) -> bool:
        """See ``BaseStorage``."""
        return self._broken("state", partial(super().set_trial_state_values, *args, **kwargs))

    def check_trial_is_updatable(self, *args: Any) -> None:
        """See ``BaseStorage``; asked first of all when pieces of a trial are written."""
        self._broken("write", partial(super().check_trial_is_updatable, *args))

    def _broken(self, name: str, work: Callable[[], Any]) -> Any:
        breaks, early = self.breaks == name, self.early
        if breaks:
            self.breaks = ""
        answer = None if breaks and early else work()
        if breaks:
            raise OperationalError("a statement", {}, Exception("server closed the connection unexpectedly"))
        return answer


Held = tuple[Driver, Unsteady]


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """A driver that has the lease of its study, in a database that it is patient with."""
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    monkeypatch.setattr(patient_storage, "AGAIN", 0.0)
    database = Unsteady(f"sqlite:///{tmp_path}/team.db")
    storage = PatientStorage(MirroredStorage(database), database.remove_session)
    monkeypatch.setattr(store, "open_storage", lambda *args, **options: storage)
    folder = StudyFolder(tmp_path / "here")
    space = search_space(first_trials=[], study={"trials": 20, "pruner": "asha", "min_epochs": 1})
    with folder.lock():
        yield Driver(open_study(space, folder, "unsteady"), space, folder, lambda *_: None, {"workers": 1}), database


def stored(driver: Driver, database: Unsteady) -> list[FrozenTrial]:
    return database.get_all_trials(optuna_private.study_id(driver.study))


def same(driver: Driver, database: Unsteady) -> bool:
    ours, theirs = driver.study.get_trials(), stored(driver, database)
    assert [t.number for t in ours] == [t.number for t in theirs] == list(range(len(theirs)))
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("state", "values", "params", "user_attrs", "intermediate_values"):
            assert getattr(mine, name) == getattr(other, name), (mine.number, name)
    return True


def test_a_trial_that_a_broken_connection_left_behind_shifts_no_other(held: Held) -> None:
    """Decisions find trials by number, in the list of all."""
    driver, database = held
    assert driver.ask("first")
    database.breaks = "create"
    assert driver.ask("second")
    assert driver.running["second"].number == 2
    assert driver.ask("third")
    assert same(driver, database)
    for key, value in (("first", 0.1), ("second", 0.2), ("third", 0.3)):
        driver.report(key, dice(1, value))
    assert counted_at(driver.study, 1).values == {0: 0.1, 2: 0.2, 3: 0.3}


def test_a_trial_that_somebody_queued_is_known_with_the_next_one(held: Held) -> None:
    driver, database = held
    database.create_new_trial(optuna_private.study_id(driver.study), optuna.trial.create_trial(state=TrialState.WAITING))
    assert driver.ask("mine")
    assert driver.running["mine"].number == 1
    assert same(driver, database)


@pytest.mark.parametrize("early", [True, False])
def test_a_trial_is_closed_in_memory_too_when_the_answer_is_lost(early: bool, held: Held) -> None:
    driver, database = held
    driver.ask("t")
    for epoch in range(1, 7):
        driver.report("t", dice(epoch, 0.5))
    database.breaks, database.early = "state", early
    driver.tell("t", crashed=False)
    assert not database.breaks
    assert [t.state for t in driver.study.get_trials()] == [TrialState.COMPLETE]
    assert same(driver, database)


@pytest.mark.parametrize("early", [True, False])
def test_a_queued_trial_begins_once_when_the_answer_is_lost(early: bool, held: Held) -> None:
    driver, database = held
    driver.study.enqueue_trial({})
    database.breaks, database.early = "state", early
    assert driver.ask("t")
    assert not database.breaks
    assert driver.running["t"].number == 0
    assert [t.state for t in driver.study.get_trials()] == [TrialState.RUNNING]
    assert same(driver, database)


def test_a_value_that_could_not_be_written_is_written_when_it_is_told_again(held: Held) -> None:
    driver, database = held
    trial = driver.study.ask()
    database.breaks, database.early = "write", True
    trial.set_user_attr("name", "one")
    assert not database.breaks
    assert stored(driver, database)[0].user_attrs["name"] == "one"
