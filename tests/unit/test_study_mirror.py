"""A driver's database: few statements for each decision, and at any time the same trials in memory and on the disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from study_helpers import dice
from training_helpers import search_space

from guidino_tune.study import lease, optuna_private
from guidino_tune.study.driver import Driver
from guidino_tune.study.mirror import MirroredStorage, flush, gathered, mirror_of
from guidino_tune.study.patient_storage import open_database
from guidino_tune.study.store import StudyFolder, load_study, open_study

MOST = {"ask": 8, "report": 5, "tell": 6}
"""Statements of one call; without the mirror they were 85, 12 and 6 to 18, and a question read all trials four times."""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Driver, str]]:
    """A driver that has the lease of its study, and the database."""
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    url, folder = f"sqlite:///{tmp_path}/team.db", StudyFolder(tmp_path / "here")
    space = search_space(first_trials=[], study={"trials": 20, "pruner": "asha", "min_epochs": 1})
    with folder.lock():
        yield Driver(open_study(space, folder, url), space, folder, lambda *_: None, {"workers": 1}), url


@contextmanager
def counted() -> Iterator[list[str]]:
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def as_stored(driver: Driver, url: str) -> list[FrozenTrial]:
    return load_study(driver.folder, url).get_trials()


def same(ours: list[FrozenTrial], stored: list[FrozenTrial]) -> bool:
    """Equal in all but the instants at which a trial began and ended."""
    assert len(ours) == len(stored)
    for mine, theirs in zip(ours, stored, strict=True):
        for name in ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs", "intermediate_values"):
            assert getattr(mine, name) == getattr(theirs, name), (mine.number, name)
        for name in ("datetime_start", "datetime_complete"):
            one, other = (getattr(trial, name) or datetime.min for trial in (mine, theirs))
            assert abs(one - other) < timedelta(seconds=2)
    return True


def test_each_decision_takes_few_statements_however_many_trials_there_are(held: tuple[Driver, str]) -> None:
    driver, _ = held
    for number in range(12):
        key, going = str(number), True
        with counted() as asked:
            assert driver.stored(partial(driver.ask, key), None) is not None
        assert len(asked) <= MOST["ask"], asked
        for epoch in range(1, 5):
            with counted() as reported:
                going = going and driver.stored(partial(driver.report, key, dice(epoch, 0.05 * number + 0.1 * epoch)), False)
            assert len(reported) <= MOST["report"], reported
        with counted() as told:
            driver.stored(partial(driver.tell, key, crashed=False), None)
        assert len(told) <= MOST["tell"], told
    assert driver.error is None


def test_the_driver_and_the_database_have_the_same_trials_after_every_call(held: tuple[Driver, str]) -> None:
    driver, url = held
    rng, going = random.Random(0), dict[str, int]()
    for step in range(50):
        key = rng.choice(list(going)) if going and rng.random() < 0.7 else f"trial {step}"
        if key not in going:
            if driver.stored(partial(driver.ask, key), None):
                going[key] = 0
        else:
            going[key] += 1
            if rng.random() < 0.1:
                driver.stored(partial(driver.fail, key, "diverged", "oh", "node 7"), None)
            if not driver.stored(partial(driver.report, key, dice(going[key], rng.random())), False) or rng.random() < 0.1:
                driver.stored(partial(driver.tell, key, crashed=False), None)
                del going[key]
        assert driver.error is None
        assert same(driver.study.get_trials(), as_stored(driver, url))
    assert {t.state for t in driver.study.get_trials()} > {TrialState.FAIL, TrialState.COMPLETE}


def test_what_was_gathered_is_on_the_disk_before_a_trial_is_told_of(held: tuple[Driver, str]) -> None:
    driver, url = held
    seen: list[dict[str, Any]] = []
    driver.listener = lambda number, *_: seen.append(as_stored(driver, url)[number].params)
    driver.stored(partial(driver.ask, "a"), None)
    assert seen == [driver.study.get_trials()[0].params]
    assert seen[0]


def test_without_the_lease_everybody_reads_the_database(held: tuple[Driver, str]) -> None:
    driver, url = held
    reader, mirror = load_study(driver.folder, url), mirror_of(driver.study)
    assert mirror is not None
    assert reader.get_trials() == []
    driver.stored(partial(driver.ask, "a"), None)
    assert [t.state for t in reader.get_trials()] == [TrialState.RUNNING]
    reader.tell(0, 0.5)  # nobody should; it is found out by whoever writes
    with pytest.raises(UpdateFinishedTrialError):
        driver.study.tell(0, 0.7)
    assert driver.frozen(driver.running["a"]).state == TrialState.COMPLETE  # what was refused is read again
    assert driver.folder.held is not None
    driver.folder.held.close()
    assert driver.study.get_trials()[0].state == TrialState.COMPLETE


def test_what_is_written_a_second_time_ends_the_same(tmp_path: Path) -> None:
    """As after a connection that broke when it had done its work."""
    storage = open_database(f"sqlite:///{tmp_path}/one.db")
    assert isinstance(storage, MirroredStorage)
    study = optuna.create_study(storage=storage)
    trial = optuna_private.trial_id(study.ask().storage.get_trial(1))
    rows = {
        ("params", "x"): (0.5, FloatDistribution(0, 1)),
        ("user_attrs", "name"): "one",
        ("system_attrs", "rung"): [1, True],
        ("intermediate_values", 3): float("inf"),
    }
    for _ in range(2):
        optuna_private.write_together(storage.database, trial, rows)
    stored = storage.get_trial(trial)
    assert (stored.params, stored.user_attrs, stored.intermediate_values) == ({"x": 0.5}, {"name": "one"}, {3: float("inf")})
    assert stored.system_attrs["rung"] == [1, True]
    study.tell(0, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        optuna_private.write_together(storage.database, trial, rows)


def test_what_fails_in_the_middle_is_not_written_by_halves(held: tuple[Driver, str]) -> None:
    driver, url = held
    trial = driver.study.ask()

    def fails() -> None:
        with gathered(driver.study):
            trial.set_user_attr("half", True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "half" not in as_stored(driver, url)[0].user_attrs
    with gathered(driver.study):
        trial.set_user_attr("whole", 1)
        trial.set_user_attr("whole", 2)
        assert "whole" not in as_stored(driver, url)[0].user_attrs
        flush(driver.study)
        assert as_stored(driver, url)[0].user_attrs["whole"] == 2
