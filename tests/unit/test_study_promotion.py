"""Trials that wait at a rung: who goes on, when the search ends, and what a driver that died anywhere leaves behind."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from space_helpers import search_space
from study_helpers import dice, drive, states

from guidino_tune.config import Experiment
from guidino_tune.space.space import Space
from guidino_tune.study.driver import Driver
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.progress import Progress

BUDGET = 4
"""Epochs of a trial; the rung is at 2."""


def space_of(space: dict[str, Any] | None = None, **study: Any) -> Space:
    settings = {"pruner": "promotion", "sampler": "random", "min_epochs": 2, "trials": 6, **study}
    return search_space(first_trials=[], study=settings, **({"space": space} if space else {}))


def play(driver: Driver, value: float, key: str = "a") -> tuple[int, int, int]:
    """One trial as far as it may go, at one Dice: its number, the epoch it went on from and the epoch it came to."""
    asked = driver.ask(key)
    assert asked
    epoch = asked["reported"]
    while driver.report(key, dice(epoch + 1, value)):
        epoch += 1
    driver.tell(key, crashed=False)
    return asked["number"], asked["reported"], epoch + 1


def test_a_trial_waits_until_it_is_in_the_best_third_of_its_rung(tmp_path: Path) -> None:
    driver = drive(tmp_path, space_of())
    assert play(driver, 0.9) == (0, 0, 2)  # the first one has no peers
    assert play(driver, 0.5) == (1, 0, 2)
    assert play(driver, 0.7) == (2, 0, 2)  # now trial 0 is the best of three
    assert play(driver, 0.9) == (0, 2, 4)
    assert states(driver) == ["COMPLETE", "RUNNING", "RUNNING"]
    assert play(driver, 0.4) == (3, 0, 2)
    assert play(driver, 0.3) == (4, 0, 2)
    assert play(driver, 0.95) == (5, 0, 4)  # among the best two of six when it comes there: it goes on at once
    assert driver.remaining == 4
    assert driver.ask("a") is None  # nobody else may go on: those that wait are closed, and the search is over
    assert (driver.remaining, driver.ended) == (0, "")
    assert states(driver) == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "PRUNED", "COMPLETE"]


def test_the_first_of_the_first_trials_runs_to_its_end_whatever_a_rung_says(tmp_path: Path) -> None:
    """A second one waits like any other. A driver that died at the rung changes neither."""
    first = [{"training.lr": rate} for rate in (1e-4, 2e-4)]
    space = dataclasses.replace(space_of(trials=3), first_trials=tuple(first))
    driver = drive(tmp_path, space)
    assert driver.ask("a")
    assert driver.report("a", dice(2, 0.1))  # alone at the rung it is not among the best one in three
    again = drive(tmp_path, space)
    assert play(again, 0.1) == (0, 2, 4)
    assert [play(again, value) for value in (0.3, 0.9)] == [(1, 0, 2), (2, 0, 4)]
    assert again.ask("a") is None
    assert states(again) == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_at_a_rung_the_best_epoch_so_far_counts(tmp_path: Path) -> None:
    """It is the one whose weights are kept; a trial whose newest epoch was a bad one is not lost for it. ASHA compares the same."""
    asha = drive(tmp_path / "asha", space_of(trials=3, min_epochs=3, pruner="asha"))
    for values in ((0.6, 0.6, 0.6), (0.5, 0.5, 0.5), (0.4, 0.9, 0.3)):
        assert asha.ask("a")
        last = [asha.report("a", dice(epoch, value)) for epoch, value in enumerate(values, 1)][-1]
        asha.tell("a", crashed=False)
    assert last
    driver = drive(tmp_path, space_of(trials=3, min_epochs=3))
    curves = {0: (0.4, 0.9, 0.3), 1: (0.5, 0.5, 0.5), 2: (0.6, 0.6, 0.6)}
    for values in curves.values():
        assert driver.ask("a")
        assert [driver.report("a", dice(epoch, value)) for epoch, value in enumerate(values, 1)] == [True, True, False]
        driver.tell("a", crashed=False)
    asked = driver.ask("a")
    assert asked
    assert (asked["number"], asked["reported"]) == (0, 3)


def test_the_time_left_counts_what_waits_and_what_is_still_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six trials, the rung after two of four epochs: 6 epochs of 10 s were trained, as many are to come, and some go on for two."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    driver = drive(tmp_path, space_of())
    progress = Progress(driver.study, driver.space, Console(quiet=True))
    assert progress._summary().endswith("0m00s so far · time left unknown")

    def listener(number: int, experiment: Experiment, record: EpochRecord | None) -> None:
        clock[0] += 10.0 if record else 0.0
        progress.changed(number, experiment, record)

    driver.listener = listener
    for number in range(3):
        assert play(driver, 0.7 - number / 10) == (number, 0, 2)
    state = progress.time_left.state(clock[0])
    assert state is not None
    assert (state.to_begin, len(state.waiting), state.running) == (3, 3, [])
    assert 60 < state.left().middle < 160
    clock[0] += 1
    assert progress._summary().endswith(" min left")
    progress.total = progress.tally.done
    assert progress._summary().endswith("1m01s in all")


def test_the_best_of_too_few_trials_runs_to_its_end(tmp_path: Path) -> None:
    driver = drive(tmp_path, space_of(trials=2))
    assert [play(driver, value) for value in (0.5, 0.6)] == [(0, 0, 2), (1, 0, 2)]
    assert play(driver, 0.6) == (1, 2, 4)
    assert driver.ask("a") is None
    assert states(driver) == ["PRUNED", "COMPLETE"]


def test_one_that_failed_after_its_promotion_makes_room(tmp_path: Path) -> None:
    driver = drive(tmp_path, space_of(trials=2))
    play(driver, 0.5)
    play(driver, 0.6)
    assert driver.ask("a")
    driver.fail("a", "diverged", "no number")
    driver.tell("a", crashed=False)
    assert play(driver, 0.5) == (0, 2, 4)


def test_a_running_trial_is_waited_for_and_a_promotable_one_is_not(tmp_path: Path) -> None:
    driver = drive(tmp_path, space_of(trials=4))
    for value in (0.5, 0.6):
        play(driver, value)
    for key in "bc":
        assert driver.ask(key)
    assert driver.waits  # two wait and two run: all have begun
    assert not driver.report("b", dice(2, 0.1))
    driver.tell("b", crashed=False)
    assert not driver.waits  # trial 1 is the best of three
    assert driver.ask("d")["number"] == 1  # type: ignore[index]
    assert driver.waits


@pytest.mark.parametrize("dies", ["asked", "reported", "told", "promoted"])
def test_a_driver_that_dies_loses_nothing(dies: str, tmp_path: Path) -> None:
    """Whoever waited waits, whoever went on goes on from where it was, and the study ends as if nobody had died."""
    values = [0.9, 0.5, 0.7, 0.4, 0.3, 0.2]

    def life(path: Path, dies: str = "") -> Driver:
        driver = drive(path, space_of())
        for _ in range(40):
            asked = driver.ask("a")
            if asked is None:
                return driver
            value, promoted = values[asked["number"]], asked["reported"] == 2
            if dies == "asked" or (promoted and dies == "promoted"):
                driver = drive(path, space_of())
                assert driver.ask("a")["reported"] == asked["reported"]  # type: ignore[index]
            goes_on = driver.report("a", dice(asked["reported"] + 1, value)) and driver.report("a", dice(asked["reported"] + 2, value))
            if dies == "reported" and not goes_on and asked["reported"] + 2 < BUDGET:
                driver = drive(path, space_of())
                continue
            driver.tell("a", crashed=False)
            driver = drive(path, space_of()) if dies == "told" else driver
        raise AssertionError("it does not end")

    whole, parts = life(tmp_path / "whole"), life(tmp_path / "parts", dies)
    assert states(whole).count("COMPLETE") == 2
    assert [(t.state, t.params, t.intermediate_values) for t in parts.study.trials] == [
        (t.state, t.params, t.intermediate_values) for t in whole.study.trials
    ]


def test_a_promotion_stands_after_a_death_though_better_trials_came_meanwhile(tmp_path: Path) -> None:
    driver = drive(tmp_path, space_of())
    for value in (0.5, 0.4, 0.3):
        play(driver, value)
    assert driver.ask("a")["number"] == 0  # type: ignore[index]  # the best of three
    assert play(driver, 0.9, "b") == (3, 0, 4)  # now this one is the best third of four
    driver = drive(tmp_path, space_of())
    assert sorted(driver.waiting.trials) == [1, 2]
    assert play(driver, 0.5) == (0, 2, 4)


def test_an_exhausted_space_promotes_the_best_before_it_ends(tmp_path: Path) -> None:
    told: list[str] = []
    choices = {"training.lr": {"choices": [1e-3, 1e-4]}, "segmenter.base_width": {"choices": [4]}}
    space = space_of(space=choices, trials=9)
    driver = drive(tmp_path, space, warn=told.append)
    for value in (0.5, 0.6):
        play(driver, value)
    assert play(driver, 0.6) == (1, 2, 4)
    assert driver.ask("a") is None
    assert states(driver)[:2] == ["PRUNED", "COMPLETE"]
    assert "exhausted" in told[0]


def test_auto_stops_none_of_several_objectives(tmp_path: Path) -> None:
    space = space_of(pruner="auto", objectives=["val_dice", "seconds"])
    assert drive(tmp_path, space).ask("a")["rungs"] == (BUDGET,)  # type: ignore[index]
    assert drive(tmp_path / "one", space_of(pruner="auto")).ask("a")["rungs"] == (2, BUDGET)  # type: ignore[index]
