"""A search that ends before its trials are used up: when it does, what it says, and what makes it go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from space_helpers import search_space
from study_helpers import dice, drive, run_trial
from synthetic_curves import Formula, synthetic_space

from guidino_tune.config import Study
from guidino_tune.errors import UserError
from guidino_tune.simulation.executor import simulate
from guidino_tune.space.space import Space, override
from guidino_tune.study.driver import Driver
from guidino_tune.study.pruners import rungs
from guidino_tune.study.stopping import sentence
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.study.trials import EXHAUSTED, counted_at, remaining


def space_of(**study: Any) -> Space:
    return search_space(first_trials=[], study={"pruner": "none", "sampler": "random", "trials": 30, "stop": 4, **study})


def run(driver: Driver, values: list[float]) -> int:
    """Runs trials, each at one Dice, until the driver asks for none; gives their number."""
    count = 0
    while driver.remaining > 0 and run_trial(driver, [values[count]] * 4):
        count += 1
    return count


@pytest.mark.parametrize("seed", range(6))
def test_it_ends_when_the_best_is_so_many_trials_old(seed: int, tmp_path: Path) -> None:
    values = np.random.default_rng(seed).random(30).round(1).tolist()  # with ties: one as good is no better
    expected = next(n for n in range(1, 31) if n == 30 or n - 1 - values.index(max(values[:n])) == 4)
    driver = drive(tmp_path, space_of())
    assert run(driver, values) == expected
    assert (driver.ended, remaining(driver.study, driver.space)) == ("", 0)


def test_it_does_not_end_while_trials_get_better(tmp_path: Path) -> None:
    assert run(drive(tmp_path, space_of()), np.linspace(0.1, 0.9, 30).tolist()) == 30
    assert run(drive(tmp_path / "off", space_of(stop=None, trials=9)), [0.5] * 9) == 9


def test_the_best_of_each_rung_goes_on_before_a_search_ends() -> None:
    space = override(synthetic_space(27, min_epochs=1), {"study.stop": 15, "study.seed": 4})
    found, study = simulate(space, Formula(0.5, 27), workers=4, epochs=10_000, trials=200)
    assert 15 < found.trials < 150
    assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    for rung in rungs(space.study, 27)[:-1]:
        values = counted_at(study, rung).values
        assert 27 in study.trials[max(values, key=lambda number: (values[number], -number))].intermediate_values


def test_a_search_that_ended_early_stays_so_until_more_is_asked_for(tmp_path: Path) -> None:
    values, folder = [0.9] + [0.5] * 40, StudyFolder(tmp_path)
    assert run(drive(tmp_path, space_of()), values) == 5
    study = open_study(space_of(), folder)
    said = sentence(study, space_of(), folder)
    assert "4 trials in a row brought nothing better. 25 of 30 trials were not run, which saved about 100 epochs or 0.0 hours" in said
    again = drive(tmp_path, space_of())
    assert (again.remaining, again.ended, len(again.study.trials)) == (0, "", 5)
    assert sentence(again.study, again.space, folder) == said
    assert run(drive(tmp_path, space_of(trials=31)), values[5:]) == 4  # counted anew
    assert run(drive(tmp_path, space_of(trials=31)), values) == 0
    assert run(drive(tmp_path, space_of(trials=31, stop=6)), values[9:]) == 6
    whole = drive(tmp_path, space_of(trials=31, stop=None))
    assert run(whole, values[15:]) == 16
    assert sentence(whole.study, space_of(trials=31), folder) == ""


def test_a_driver_that_dies_after_the_end_was_decided_begins_no_trial(tmp_path: Path) -> None:
    space = space_of(pruner="promotion", min_epochs=2, stop=3)
    driver = drive(tmp_path, space)
    for value in (0.5, 0.4, 0.3):
        run_trial(driver, [value] * 4)
    assert run_trial(driver, [0.5] * 4)["number"] == 0  # type: ignore[index]  # promoted
    driver.ask("other")
    for value in (0.2, 0.1):
        run_trial(driver, [value] * 4)
    driver.report("other", dice(1, 0.35))
    run_trial(driver, [0.15] * 4)
    begun = len(driver.study.trials)
    driver = drive(tmp_path, space)
    assert (driver.remaining, len(driver.orphans), len(driver.waiting.trials)) == (6, 1, 5)
    assert run(driver, [0.35, 0.4, 0.0]) == 2  # the one that ran goes on from its first epoch, and then the best that waits
    assert len(driver.study.trials) == begun
    assert {t.state for t in driver.study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert driver.ended == ""


def test_a_space_that_grows_is_searched_again(tmp_path: Path) -> None:
    driver = drive(tmp_path, space_of())
    assert run(driver, [0.9] + [0.5] * 30) == 5
    driver.study.set_user_attr(EXHAUSTED, True)  # by another ending: a wider space has more to offer
    wider = {"training.lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True}}
    grown = drive(tmp_path, dataclasses.replace(space_of(), parameters=search_space(space=wider).parameters))
    assert grown.remaining == 25
    assert run(grown, [0.5] * 30) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": 0}, "a number of trials from 1 is needed, auto, or null"),
        ({"stop": True}, "a number of trials from 1 is needed"),
        ({"stop": "none"}, "a number of trials from 1 is needed"),
        ({"stop": "auto", "sampler": "listed"}, "a list is run whole"),
        ({"stop": 9, "objectives": ["val_dice", "seconds"]}, "several objectives have no best trial"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of(**settings)
    assert Study(stop="auto").patience == 80
