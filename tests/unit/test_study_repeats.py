"""The same configuration is trained once; a finite space ends the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from space_helpers import search_space
from study_helpers import dice, drive, run_trial, states

from guidino_tune.study.outcomes import REPEATS
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import finished, remaining, tried


def finite(rates: int = 6, **study: Any) -> Any:
    """Rates and two widths; far more trials are wanted than there are configurations."""
    return search_space(
        first_trials=[],
        space={"training.lr": {"choices": [1e-3 * (n + 1) for n in range(rates)]}},
        study={"trials": 40, "pruner": "none", **study},
    )


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_configuration_of_a_finite_space_is_trained_once_and_then_the_search_ends(sampler: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    driver = drive(tmp_path, finite(sampler=sampler), warn=warnings.append)
    trained = []
    while asked := run_trial(driver, [0.1 * len(trained)] * 4):
        trained.append((asked["experiment"]["training"]["lr"], asked["experiment"]["segmenter"]["base_width"]))
    assert len(trained) == len(set(trained)) == 12
    assert driver.ended == ""
    assert "exhausted" in warnings[-1]
    assert "12 configuration(s)" in warnings[-1]
    tally = Tally(driver.study)
    assert (tally.done, sum(tally.states.values()), tally.epochs) == (12, 12, 48)
    driver = drive(tmp_path, finite(sampler=sampler), warn=warnings.append)
    assert run_trial(driver) is None  # nor does a later run train anything


def test_a_study_of_an_exhausted_space_has_no_trials_left_to_whoever_opens_it(tmp_path: Path) -> None:
    driver = drive(tmp_path, finite(rates=1))
    while run_trial(driver):
        assert remaining(driver.study, driver.space)
    assert remaining(driver.study, driver.space) == 0
    assert drive(tmp_path, finite(rates=1)).ended == ""


def test_what_failed_twice_through_no_fault_of_its_own_is_left_to_a_later_run_of_an_exhausted_space(tmp_path: Path) -> None:
    driver = drive(tmp_path, finite(rates=1))
    widths: list[int] = []
    while asked := driver.ask("t"):
        widths.append(asked["experiment"]["segmenter"]["base_width"])
        driver.fail("t", "environment" if widths[-1] == widths[0] else "diverged", "oh")
        driver.tell("t", crashed=False)
    assert widths.count(widths[0]) == 2
    assert driver.exhausted
    again = drive(tmp_path, finite(rates=1))
    assert "Interrupted" in again.ended
    assert run_trial(again)
    assert run_trial(again) is None
    assert drive(tmp_path, finite(rates=1)).ended == ""


def test_a_space_without_parameters_is_one_trial(tmp_path: Path) -> None:
    one = finite(rates=1).to_dict()
    from guidino_tune.space.space import read_space

    driver = drive(tmp_path, read_space({**one, "space": {}, "first_trials": []}, source="one"))
    assert driver.ask("a")
    assert driver.ask("b") is None
    assert driver.waits  # it may have to be tried again
    driver.fail("a", "environment", "full")
    driver.tell("a", crashed=False)
    assert not driver.waits
    assert run_trial(driver)
    assert run_trial(driver) is None
    assert driver.ended == ""


def test_a_trial_that_was_stopped_or_diverged_is_known_and_one_that_failed_otherwise_is_not(tmp_path: Path) -> None:
    driver = drive(tmp_path, search_space(first_trials=[], study={"min_epochs": 1, "reduction_factor": 2}))
    values = [{"training.lr": 1e-3 * n, "segmenter.base_width": 2} for n in (1, 2, 3, 4)]
    for given in values:
        driver.study.enqueue_trial(given)
    run_trial(driver)
    run_trial(driver, [0.1] * 4)
    for kind in ("diverged", "bug"):
        driver.ask("t")
        driver.fail("t", kind, "oh")
        driver.tell("t", crashed=False)
    assert states(driver) == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    for given in values[1:]:
        driver.study.enqueue_trial(given)
    assert driver.ask("t")["number"] == 6  # type: ignore[index]
    assert [t.user_attrs.get(REPEATS) for t in driver.study.trials] == [None] * 4 + [1, 2, None]
    assert len(finished(driver.study)) == 3


def test_what_a_dead_driver_left_running_is_no_repetition_of_itself(tmp_path: Path) -> None:
    driver = drive(tmp_path, finite())
    asked = driver.ask("a")
    driver.report("a", dice(1, 0.5))
    again = drive(tmp_path, finite()).ask("a")
    assert asked
    assert again == {**asked, "reported": 1}


def test_repetitions_are_no_trials_for_a_person(tmp_path: Path) -> None:
    driver = drive(tmp_path, finite(sampler="random"))
    while run_trial(driver, [0.1] * 4):
        pass
    assert any(REPEATS in t.user_attrs for t in driver.study.trials)
    assert len(tried(driver.study)) == 12
    assert {t.state for t in tried(driver.study)} == {TrialState.COMPLETE}
