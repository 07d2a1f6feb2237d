"""What a rung decided stands, whoever drives the study afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from space_helpers import search_space
from study_helpers import dice, drive, states

from guidino_tune.study import driver as driver_module

ASHA = {"min_epochs": 3, "reduction_factor": 3, "trials": 4}


def test_a_trial_that_a_rung_let_go_on_is_not_stopped_by_the_next_start(tmp_path: Path) -> None:
    """Each of four is the best so far when it comes to the rung; judged again, three of them would be beaten by the last."""
    space = search_space(first_trials=[], study=ASHA)
    driver = drive(tmp_path, space)
    for number in range(4):
        driver.ask(str(number))
    for number in range(4):
        assert all(driver.report(str(number), dice(epoch, 0.5 + number / 10)) for epoch in (1, 2, 3))
    again = drive(tmp_path, space)
    assert states(again) == ["RUNNING"] * 4
    assert [again.ask(str(number))["reported"] for number in range(4)] == [3] * 4  # type: ignore[index]


def test_a_trial_that_a_rung_stopped_stays_stopped(tmp_path: Path) -> None:
    """Worse ones come to the rung before the driver dies; judged again, it would be good enough."""
    space = search_space(first_trials=[], study={**ASHA, "trials": 9})
    driver = drive(tmp_path, space)
    for number in range(6):
        driver.ask(str(number))
    answers = [driver.report(str(number), dice(3, value)) for number, value in enumerate((0.9, 0.5, 0.4, 0.3, 0.2, 0.1))]
    assert answers == [True] + [False] * 5
    assert states(drive(tmp_path, space)) == ["RUNNING"] + ["PRUNED"] * 5


def test_an_undecided_trial_is_compared_once_by_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = search_space(first_trials=[], study=ASHA)

    def die(*_: object) -> bool:
        raise InterruptedError

    driver = drive(tmp_path, space)
    driver.ask("a")
    with monkeypatch.context() as patched:
        patched.setattr(driver_module, "ends", die)
        with pytest.raises(InterruptedError):
            driver.report("a", dice(3, 0.5))
    driver = drive(tmp_path, space)  # compares it with nobody
    assert driver.ask("a")
    for name, value in (("b", 0.8), ("c", 0.9)):
        driver.ask(name)
        driver.report(name, dice(3, value))
    assert states(drive(tmp_path, space)) == ["RUNNING"] * 3
