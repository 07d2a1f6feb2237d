"""What is tried again after failures, what is not, when a search gives up, and how it says that it ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from test_outcomes import LOST, Death
from test_study_driver import result
from training_helpers import search_space

from guidino_tune.running.tune_adapter import StudySearcher
from guidino_tune.space.space import read_space
from guidino_tune.study.driver import INTERRUPTED, OUT_OF_TIME
from guidino_tune.study.outcomes import LIMIT, PATIENCE, PREEMPTIONS, REFUSALS, Outcomes
from guidino_tune.study.trials import finished, remaining, without_result


def same_values(death: Death, times: int) -> None:
    for _ in range(times):
        death.run.study.enqueue_trial({"training.lr": 1e-3, "segmenter.base_width": 2})


@pytest.mark.parametrize(("kind", "restarted"), [("bug", False), ("bug", True), ("environment", False)])
def test_what_failed_twice_the_same_way_is_not_tried_a_third_time(kind: str, restarted: bool, tmp_path: Path) -> None:
    death = Death(tmp_path)
    same_values(death, 3)
    death.fail(kind)
    death.fail(kind, "otherwise")
    if restarted:
        death = Death(tmp_path)
    before = death.driver.remaining
    asked = death.ask()
    assert asked["number"] == 3
    refused = death.run.trial(2)
    assert (refused.state, refused.user_attrs["failure"]) == (TrialState.FAIL, kind)
    assert "2 times before" in refused.user_attrs["message"]
    assert "not tried again" in refused.user_attrs["message"]
    assert (2, None) in death.run.heard
    assert death.driver.remaining == before  # it is made up for
    assert not finished(death.run.study)


@pytest.mark.parametrize("kind", ["environment", "bad data", "crashed"])
def test_what_failed_for_the_machine_is_tried_again_by_the_next_run(kind: str, tmp_path: Path) -> None:
    death = Death(tmp_path)
    same_values(death, 4)
    death.fail(kind)
    death.fail(kind, "otherwise")
    death = Death(tmp_path)  # the disk was mended, and the command repeated
    assert death.fail(kind) == 2
    assert death.fail(kind, "otherwise") == 3
    same_values(death, 1)
    assert death.ask()["number"] == 5  # in this run it failed twice again
    assert "2 times before" in death.run.trial(4).user_attrs["message"]


def test_failures_of_two_kinds_are_not_the_same_way(tmp_path: Path) -> None:
    death = Death(tmp_path)
    same_values(death, 4)
    assert [death.fail("bug"), death.fail("environment"), death.fail("bad data")] == [0, 1, 2]
    assert death.ask()["number"] == 3


def test_a_sampler_that_knows_nothing_else_ends_the_search(tmp_path: Path) -> None:
    death = Death(tmp_path)
    same_values(death, 2 + REFUSALS)
    death.fail("bug")
    death.fail("bug")
    searcher = StudySearcher(death.driver)
    assert searcher.suggest("next") == Searcher.FINISHED
    assert f"{REFUSALS} configurations in a row" in death.driver.given_up
    assert "bug" in death.driver.given_up
    assert len(death.run.study.trials) == 2 + REFUSALS


def test_listed_sets_that_fail_twice_are_left_and_named(tmp_path: Path) -> None:
    values = search_space().to_dict()
    values["space"] = {"training.lr": {"type": "float", "low": 1e-5, "high": 1e-1}}
    values["first_trials"] = [{"training.lr": rate} for rate in (1e-4, 1e-3)]
    values["study"] |= {"sampler": "listed", "pruner": "none"}
    space = read_space(values, source="list.yaml")
    death = Death(tmp_path, space)
    searcher = StudySearcher(death.driver)
    rates = []
    while (asked := searcher.suggest("t")) != Searcher.FINISHED:
        rates.append(asked["experiment"]["training"]["lr"])
        bad = rates[-1] == 1e-4
        death.driver.fail("t", "bug", "shapes differ") if bad else death.driver.report("t", result(4, 0.5))
        death.driver.tell("t", crashed=False)
    assert rates == [1e-4, 1e-3, 1e-4]
    assert not death.driver.given_up
    assert Death(tmp_path, space).driver.remaining == 0
    (line,) = without_result(death.run.study, space)
    assert "0.0001" in line
    assert "bug: shapes differ" in line


def test_listed_sets_that_the_machine_spoiled_are_tried_again_by_the_next_run(tmp_path: Path) -> None:
    values = search_space().to_dict()
    values["space"] = {"training.lr": {"type": "float", "low": 1e-5, "high": 1e-1}}
    values["first_trials"] = [{"training.lr": rate} for rate in (1e-4, 1e-3)]
    values["study"] |= {"sampler": "listed", "pruner": "none"}
    space = read_space(values, source="list.yaml")
    for run, numbers in enumerate(([0, 1, 2], [3])):
        death = Death(tmp_path, space)
        searcher, asked = StudySearcher(death.driver), []
        while (sent := searcher.suggest("t")) != Searcher.FINISHED:
            asked.append(sent["number"])
            bad = run == 0 and sent["experiment"]["training"]["lr"] == 1e-4
            death.driver.fail("t", "environment", "full") if bad else death.driver.report("t", result(4, 0.5))
            death.driver.tell("t", crashed=False)
        assert asked == numbers
        assert remaining(death.run.study, space, death.driver.outcomes) == 0  # this run is through
        assert remaining(death.run.study, space) == (1 if run == 0 else 0)  # and the next one begins with the rest
        assert ("1 listed trials failed twice" in death.driver.ended) == (run == 0)


def test_a_search_that_gave_up_stays_so_though_a_running_trial_succeeds(tmp_path: Path) -> None:
    """Tune never asks again a searcher that has said it is finished."""
    death = Death(tmp_path)
    searcher, driver = StudySearcher(death.driver), death.driver
    for name in ("slow", "a", "b", "c"):
        assert searcher.suggest(name) != Searcher.FINISHED
    for name in ("a", "b", "c"):
        driver.fail(name, "environment", "no space left on device")
        driver.tell(name, crashed=False)
    assert searcher.suggest("next") == Searcher.FINISHED
    driver.report("slow", result(4, 0.5))
    driver.tell("slow", crashed=False)
    assert searcher.suggest("next") == Searcher.FINISHED
    assert "no space left" in driver.ended


def test_what_is_left_decides_how_a_search_ended_not_what_runs(tmp_path: Path) -> None:
    death = Death(tmp_path, search_space(first_trials=[], study={"trials": 2}))
    assert death.driver.ended == INTERRUPTED  # Ctrl-C while no trial ran
    death.driver.ask("left")
    death.succeed()
    death = Death(tmp_path, search_space(first_trials=[], study={"trials": 1}))
    assert [t.number for t in death.driver.orphans] == [0]
    assert death.driver.ended == ""  # fewer are wanted now: one is left unfinished on purpose
    death = Death(tmp_path, search_space(first_trials=[], study={"trials": 2}))
    death.driver.deadline = 0.0
    assert death.driver.ended == OUT_OF_TIME


def test_epochs_told_again_are_no_progress(tmp_path: Path) -> None:
    """Validation is rare, and the machine is always lost in the same epoch."""
    death = Death(tmp_path)
    for _ in range(PREEMPTIONS + 1):
        assert death.ask()["number"] == 0
        assert death.driver.report("t", result(2, None, (1, None)))
        death.die(LOST)
    # The first telling came after no loss, so one more loss than that is allowed.
    assert death.run.trial(0).state == TrialState.FAIL
    assert "without an epoch" in death.run.trial(0).user_attrs["message"]


def test_a_common_cause_ends_the_search_and_single_failures_do_not(tmp_path: Path) -> None:
    death = Death(tmp_path)
    death.succeed()
    for number in range(PATIENCE - 1):
        death.fail("bug", f"shape (3, {number}) at 0x7f{number} in trials/0000{number}")
    death.fail("environment", "no space left on device")
    assert not death.driver.given_up
    death.fail("environment", "no space left on device")
    assert not death.driver.given_up
    death.fail("environment", "no space left on device")
    assert "no space left" in death.driver.given_up
    assert "What to do: look after disk space" in death.driver.given_up


def test_messages_that_differ_in_numbers_only_have_one_cause(tmp_path: Path) -> None:
    death = Death(tmp_path)
    for number in range(PATIENCE):
        assert not death.driver.given_up
        death.fail("bug", f"shape (3, {number}) at 0x7f{number}a (traceback: trials/0000{number}/traceback.txt)")
    assert "failed the same way" in death.driver.given_up


def test_no_mixture_of_failures_goes_on_for_ever(tmp_path: Path) -> None:
    death = Death(tmp_path)
    for number in range(LIMIT):
        assert not death.driver.given_up
        death.fail(("bug", "environment", "bad data")[number % 3])
    assert f"{LIMIT} trials in a row failed (3 bug, 3 environment, 3 bad data)" in death.driver.given_up


def test_different_parameters_of_one_experiment_are_told_once_and_trained_once(tmp_path: Path) -> None:
    """Momentum is SGD's alone, so with AdamW two momenta are one experiment: a repetition, which is not trained again."""
    space = search_space(
        first_trials=[{"training.optimizer": "adamw", "training.momentum": m} for m in (0.5, 0.9, 0.7)],
        space={
            "training.optimizer": {"choices": ["adamw", "sgd"]},
            "training.lr": {"choices": [1e-3]},
            "training.momentum": {"choices": [0.5, 0.7, 0.9]},
            "segmenter.base_width": {"choices": [2]},
        },
    )
    death = Death(tmp_path, space)
    death.succeed()
    asked = death.ask()
    assert asked["experiment"]["training"]["optimizer"] == "sgd"
    (warning,) = death.warnings
    for part in ("trials 0 and 1", "training.momentum: 0.5 and 0.9", "repeats the first", "when:"):
        assert part in warning
    assert [t.state.name for t in death.run.study.trials[:3]] == ["COMPLETE", "FAIL", "FAIL"]
    assert not death.driver.given_up


def test_the_same_parameters_may_be_asked_twice() -> None:
    outcomes = Outcomes([], 0)
    assert [outcomes.repetition(n, "abc", {"x": 1}) for n in (0, 1, 0)] == [""] * 3
    assert outcomes.repetition(2, "abd", {"x": 2}) == ""
    assert "x: 1 and 3" in outcomes.repetition(3, "abc", {"x": 3})
    assert outcomes.repetition(4, "abc", {"x": 4}) == ""  # of the same parameters
    assert "y: absent and 2" in outcomes.repetition(5, "abc", {"x": 1, "y": 2})
