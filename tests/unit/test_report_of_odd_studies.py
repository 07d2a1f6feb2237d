"""The report of odd studies: a single trial, a front without a finite value, an even number of trials, a wait, an interruption."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import optuna
import pytest
from report_helpers import START, simulated, stored
from synthetic_curves import synthetic_space
from test_report import page, section

from guidino_tune.reporting import charts
from guidino_tune.reporting.material import collect
from guidino_tune.reporting.words import duration, figure
from guidino_tune.space.space import override
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.report import write_report
from guidino_tune.workflows.study_page import page_of_stored


def test_a_front_without_any_finite_value_is_no_error(tmp_path: Path) -> None:
    made = simulated(tmp_path / "one", 120)
    space = override(made.space, {"study.objectives": ["val_dice", "val_hd95"], "study.pruner": "none", "study.name": "front"})
    whole = next(t for t in made.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE)
    far = optuna.trial.create_trial(
        values=[0.5, float("inf")], params=whole.params, distributions=whole.distributions, intermediate_values={27: 0.5}
    )
    parts = page(stored(tmp_path / "front", space, [far]))
    assert "The front, best Dice first." in section(parts, "Pareto front", "Leaderboard")


def test_a_single_trial_stands_on_an_axis_of_trials(tmp_path: Path) -> None:
    made = simulated(tmp_path / "some", 120)
    whole = next(t for t in made.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE)
    told = section(page(stored(tmp_path / "one", made.space, [whole])), "History", "Learning curves")
    assert "e-07" not in told
    assert "0e+00" not in told


@pytest.mark.parametrize(("others", "kind"), [(0.5, "good"), (0.9, "bad"), (0.7, "open")])
def test_what_the_sealed_test_says_is_marked(others: float, kind: str, tmp_path: Path) -> None:
    """The winner on validation may be the worse one there."""
    made, random = simulated(tmp_path / "compared", 120), np.random.default_rng(0)
    made.folder.reports.mkdir()
    with (made.folder.reports / "compare.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "configuration", "seed", "case", "group", "dice"])
        for name, validation, test in (("trial 5", 0.8, 0.7), ("default", 0.6, others)):
            for part, mean in (("validation", validation), ("test", test)):
                rows = [(part, name, seed, f"{part}{n}", f"{part}{n}") for seed in (0, 1, 2) for n in range(30)]
                writer.writerows([*row, mean if kind == "open" and part == "test" else mean + random.normal(0, 0.02)] for row in rows)
    text = write_report(page_of_stored(made)).read_text()
    assert f'<p class="{kind}">On the sealed test: ' in text


def test_no_name_of_a_line_hides_a_trial(tmp_path: Path) -> None:
    made = simulated(tmp_path / "some", 120)
    drawn = charts.history(collect(made).trials, None, [("best constant mask", 0.25)], by_time=False)
    assert drawn.index(">best constant mask<") < drawn.index("<circle")


def test_the_median_of_two_is_between_them(tmp_path: Path) -> None:
    made = simulated(tmp_path / "some", 600)
    whole = [t for t in made.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
    two = [whole[0], next(t for t in whole if abs(t.value - whole[0].value) > 0.01)]
    told = section(page(stored(tmp_path / "two", made.space, two)), "Learning curves", "What mattered")
    row = told.split("\n27\n")[-1].split("\n")
    assert row[2] == f"{(two[0].value + two[1].value) / 2:.4f}"


def test_markdown_says_no_only_to_a_question(tmp_path: Path) -> None:
    empty = stored(tmp_path / "empty", override(synthetic_space(27), {"study.name": "empty"}), [])
    text = write_report(page_of_stored(empty), format="markdown").read_text()
    assert "No trial has begun yet." in text
    assert "No: " not in text


def test_long_times_and_round_numbers_are_written_out() -> None:
    assert [duration(seconds) for seconds in (0.5, 12, 252, 31 * 3600, 999.7 * 3600, 1234 * 3600)] == [
        "0.5 s", "12 s", "4.2 min", "31 h", "1,000 h", "1,234 h"
    ]  # fmt: skip
    assert [figure(value) for value in (0.1234, 99.96, 999.4, 999.7, 1e8)] == ["0.123", "100", "999", "1,000", "1e+08"]


def test_no_trial_of_a_study_that_nobody_drives_runs(tmp_path: Path) -> None:
    made = simulated(tmp_path / "some", 120)
    first = made.study.get_trials(deepcopy=False)[0]
    left = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params=first.params, distributions=first.distributions, intermediate_values={1: 0.4}
    )
    halted = stored(tmp_path / "halted", made.space, [first, left])
    assert "\ninterrupted\n" in section(page(halted), "Leaderboard", "Images")
    with halted.folder.lock():
        assert "\nrunning\n" in section(page(halted), "Leaderboard", "Images")


def test_a_short_wait_at_a_rung_is_no_third_place(tmp_path: Path) -> None:
    """Two places: a trial of long epochs waits for some seconds, and one of short epochs has its place meanwhile."""
    made = simulated(tmp_path / "some", 120, histories=False)
    trials = made.study.get_trials(deepcopy=False)[:3]
    study, start = stored(tmp_path / "three", made.space, trials, histories=False), START.timestamp()
    times = {0: [(20, 20), (45, 20)], 1: [(10, 10), (20, 10), (30, 10), (40, 10)], 2: [(22, 1), (24, 1)]}  # ends and seconds of epochs
    for number, epochs in times.items():
        study.folder.trial(number).write_history(
            EpochRecord(epoch, {"val_dice": 0.5, "epoch_seconds": seconds}, start + end) for epoch, (end, seconds) in enumerate(epochs, 1)
        )
    assert "on 2 places at once" in page(study).text
