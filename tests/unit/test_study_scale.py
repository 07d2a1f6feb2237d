"""What a driver of a large cluster does for one trial: as much beside a thousand others as beside a hundred, and the same as if it had just
been started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from study_helpers import dice, drive
from synthetic_curves import synthetic_space

from guidino_tune.space.space import override
from guidino_tune.study import optuna_private
from guidino_tune.study.driver import Driver
from guidino_tune.study.fronts import on_front
from guidino_tune.study.journal import open_journal
from guidino_tune.study.promotion import is_waiting
from guidino_tune.study.samplers import TPESampler
from guidino_tune.study.standings import Changes
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import counted_at, front, value_at

GROWTH = 1.3
"""Calls beside eight times as many trials over those beside few, at most."""


def calls(action: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's, for an action: they are the same on every machine."""
    counted = [0]

    def count(frame: object, event: str, arg: object) -> None:
        counted[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return counted[0]


def large(path: Path, trials: int, *, ended: bool) -> Driver:
    """A driver with so many trials, which run, or have come to their first rung."""
    space = override(synthetic_space(27, min_epochs=3), {"study.trials": 100_000, "study.sampler": "tpe"})
    driver, rng = drive(path, space), np.random.default_rng(0)
    for number in range(trials + 40):
        driver.ask(str(number))
        if (ended or number < 40) and not driver.report(str(number), dice(3, float(rng.random()))):
            driver.tell(str(number), crashed=False)
    return driver


@pytest.mark.parametrize("ended", [False, True])
def test_a_trial_costs_as_much_beside_many_as_beside_few(ended: bool, tmp_path: Path) -> None:
    drivers = [large(tmp_path / str(trials), trials, ended=ended) for trials in (100, 800)]
    spent: dict[str, list[int]] = {}
    for driver in drivers:
        for n in range(12):
            told = dice(3, 0.2 + n / 100)
            spent.setdefault(f"ask {n}", []).append(calls(lambda driver=driver, n=n: driver.ask(f"new {n}")))  # type: ignore[misc]
            spent.setdefault(f"report {n}", []).append(
                calls(lambda driver=driver, n=n, told=told: driver.report(f"new {n}", told))  # type: ignore[misc]
            )
            spent.setdefault(f"waits {n}", []).append(calls(lambda driver=driver: driver.waits))  # type: ignore[misc]
            spent.setdefault(f"tell {n}", []).append(calls(lambda driver=driver, n=n: driver.tell(f"new {n}", crashed=False)))  # type: ignore[misc]
    for what in ("ask", "report", "waits", "tell"):
        few, many = (sum(counts[place] for name, counts in spent.items() if name.startswith(what)) for place in (0, 1))
        assert many <= GROWTH * few, (what, few, many)


@pytest.mark.parametrize("storage", ["memory", "journal", "sqlite"])
@pytest.mark.parametrize("constrained", [False, True])
def test_what_is_kept_along_is_what_a_driver_that_begins_would_find(storage: str, constrained: bool, tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    places = {"memory": None, "journal": open_journal(tmp_path / "journal"), "sqlite": f"sqlite:///{tmp_path}/study.db"}
    study = optuna.create_study(direction="maximize", storage=places[storage])
    space = override(synthetic_space(27, min_epochs=1), {"study.constraints": {"parameters": 1e6}} if constrained else {})
    rng, running = np.random.default_rng(3), dict[int, tuple[optuna.Trial, int]]()
    kept = TPESampler(space, 0)
    for _ in range(150 if storage != "sqlite" else 60):
        number = int(rng.choice([*running, -1]))
        if len(running) < 4 or number < 0:
            trial = study.ask()
            if constrained:
                trial.set_constraint("parameters", float(rng.normal()))
            running[trial.number] = trial, 0
        else:
            trial, epoch = running.pop(number)
            if rng.random() < 0.7 and epoch < 9:
                trial.report(round(float(rng.random()), 1), epoch + 1)  # with ties
                running[number] = trial, epoch + 1
            else:
                state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[rng.integers(3)]
                trial.set_user_attr("failure", str(rng.choice(["diverged", "crashed"])))
                study.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
        trials = study.get_trials()
        found = kept.split(study, len(trials))
        fresh = TPESampler(space, 0).split(study, len(trials))
        assert [[t.number for t in some] for some in found] == [[t.number for t in some] for some in fresh]
        for rung in (1, 3, 9):
            values = {t.number: v for t in trials if t.state != TrialState.FAIL and (v := value_at(t, rung)) is not None}
            counted = counted_at(study, rung)
            assert counted.values == values
            assert [n for _, n in counted.order] == sorted(values, key=lambda n: (-values[n], n))
            assert all(
                counted.leads(n, most) is (n in sorted(values, key=lambda n: (-values[n], n))[:most]) for n in values for most in (0, 2)
            )


@pytest.mark.parametrize("journal", [True, False])
def test_only_what_changed_is_looked_at(journal: bool, tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_journal(tmp_path / "journal") if journal else None)
    changes, trials = Changes(), [study.ask() for _ in range(5)]
    assert list(changes.look(study)[1]) == [0, 1, 2, 3, 4]
    assert list(changes.look(study)[1]) == []
    optuna_private.report(trials[3], 0.5, 1)
    trials[1].set_user_attr("name", "other")
    study.ask()
    seen, changed = changes.look(study)
    assert list(changed) == [1, 3, 5]
    assert seen[3].intermediate_values == {1: 0.5}
    assert [seen[n] for n in range(len(seen))] == study.get_trials()
    if journal:  # another process, such as a person who adds a trial, writes into the same file
        other = optuna.load_study(study_name=study.study_name, storage=open_journal(tmp_path / "journal"))
        other.enqueue_trial({})
        assert list(changes.look(study)[1]) == [6]


def test_trials_that_wait_are_counted_along(tmp_path: Path) -> None:
    driver, rng = drive(tmp_path, synthetic_space(9, trials=60)), np.random.default_rng(0)
    tally, seen = Tally(driver.study), set[int]()
    driver.listener = lambda number, experiment, record: tally.take(optuna_private.stored_trial(driver.study, number)) and None
    epochs: dict[str, int] = {}
    for step in range(400):
        key = str(rng.choice([*epochs])) if len(epochs) >= 5 else f"new {step}"
        if key not in epochs:
            if (asked := driver.ask(key)) is None:
                break
            epochs[key] = asked["reported"]
        elif not driver.report(key, dice(epoch := epochs.pop(key) + 1, float(rng.random()))):
            driver.tell(key, crashed=False)
        else:
            epochs[key] = epoch
        waiting = {t.number for t in driver.study.get_trials() if t.state == TrialState.RUNNING and is_waiting(t)}
        assert tally.waiting == waiting == set(Tally(driver.study).waiting)
        seen |= waiting
    assert len(seen) > 10


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("objectives", [2, 3])
def test_the_front_is_that_of_its_definition_and_of_optuna(objectives: int, constrained: bool) -> None:
    rng = np.random.default_rng(objectives)
    for number in (0, 1, 2, 40):
        study = optuna.create_study(directions=["maximize", *["minimize"] * (objectives - 1)])
        for _ in range(number):
            trial = study.ask()
            if constrained:
                trial.set_constraint("parameters", float(rng.normal()))
            study.tell(trial, rng.integers(6, size=objectives).tolist())  # with equal ones
        assert {t.number for t in front(study)} == {t.number for t in study.best_trials}
        points = rng.integers(6, size=(number, objectives))
        dominated = [any((p <= q).all() and (p < q).any() for p in points) for q in points]
        assert on_front(points).tolist() == [not lost for lost in dominated]
