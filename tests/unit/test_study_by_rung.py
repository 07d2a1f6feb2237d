"""TPE that compares trials at one rung: which are good, which are bad, and how many are looked at."""

from __future__ import annotations

import contextlib
import itertools
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from space_helpers import search_space

from guidino_tune.errors import UserError
from guidino_tune.space.space import Space
from guidino_tune.study.samplers import BEST, LATEST, RepeatingRandomSampler, TPESampler, make_sampler
from guidino_tune.study.store import StudyFolder, as_begun, open_study
from guidino_tune.workflows.precision import settle

RATE = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)


def space_of(**study: Any) -> Space:
    """Rungs at 1 and 2 of 4 epochs; 6 trials are enough."""
    settings = {"min_epochs": 1, "reduction_factor": 2, "startup_trials": 6, "trials": 900, **study}
    return search_space(space={"segmenter.base_width": {"choices": [2]}}, first_trials=[], study=settings)


def study_of(*trials: tuple[TrialState, list[float], str]) -> optuna.Study:
    """Trials by state, Dice of their first epochs, and kind of failure."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for number, (state, dice, failure) in enumerate(trials):
        study.add_trial(
            optuna.trial.create_trial(
                state=state, value=max(dice) if state == TrialState.COMPLETE else None, intermediate_values=dict(enumerate(dice, 1)),
                params={"training.lr": 1e-4 * (1 + number / len(trials))}, distributions={"training.lr": RATE},
                user_attrs={"failure": failure} if failure else {},
            )
        )  # fmt: skip
    return study


def split(study: optuna.Study, sampler: TPESampler) -> tuple[list[int], list[int]]:
    """The good and the bad trials of the next draw, by number; two empty lists where it draws at random."""
    good, bad = sampler.split(study, len(study.trials))
    return sorted(t.number for t in good), [t.number for t in bad]


DONE, STOPPED, RUNS, FAILED = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.FAIL


def test_a_trial_counts_with_its_value_at_the_rung_whatever_became_of_it() -> None:
    study = study_of(
        (DONE, [0.5, 0.4, 0.8, 0.9], ""),  # early luck: complete, and not good at epoch 2
        (STOPPED, [0.9], ""),  # ended before
        (STOPPED, [0.3, 0.6], ""),
        (STOPPED, [0.3, 0.5], ""),
        (RUNS, [0.1, 0.8], ""),  # waits, or goes on: the best there is
        (RUNS, [0.7], ""),
        (RUNS, [], ""),
        (FAILED, [0.9, 0.9], "diverged"),
        (FAILED, [0.9, 0.9], "crashed"),  # through no fault of its own
        (STOPPED, [0.4, 0.7], ""),
        (STOPPED, [0.4, 0.2], ""),
        (STOPPED, [0.4, 0.1], ""),
    )
    assert split(study, TPESampler(space_of(), 0)) == ([4, 9], [0, 1, 2, 3, 5, 6, 7, 10, 11])
    # With more of them wanted it is epoch 1 at which they are compared.
    assert split(study, TPESampler(space_of(startup_trials=9), 0))[0] == [1, 5]
    assert split(study, TPESampler(space_of(startup_trials=20), 0)) == ([], [])


def test_trials_that_wait_are_enough_to_model() -> None:
    """While trials wait at their first rung none may have ended."""
    study = study_of(*[(RUNS, [0.1 * number], "") for number in range(8)])
    assert split(study, TPESampler(space_of(), 0))[0] == [6, 7]


def test_without_enough_trials_it_draws_as_at_random() -> None:
    draws = []
    for sampler in (TPESampler(space_of(), 5), RepeatingRandomSampler(5)):
        study = study_of(*[(STOPPED, [0.5], "")] * 5)
        study.sampler = sampler
        draws.append(study.ask({"training.lr": RATE}).params)
    assert draws[0] == draws[1]


def test_what_is_modelled_is_bounded_and_has_the_best() -> None:
    dice = [math.sin(number) for number in range(700)]
    study = study_of(*[(STOPPED, [d] if number % 2 else [d, d], "") for number, d in enumerate(dice)])
    good, bad = split(study, TPESampler(space_of(), 0))
    assert good == sorted(sorted(range(0, 700, 2), key=lambda n: -dice[n])[:BEST])
    assert len(good) + len(bad) <= BEST + 2 * LATEST
    assert set(range(600, 700)) <= {*good, *bad}


def test_a_study_goes_on_with_the_sampler_and_pruner_it_was_begun_with(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    auto = space_of(pruner="auto")
    assert as_begun(auto, folder) == auto
    open_study(space_of(sampler="random", pruner="asha"), folder)
    again = as_begun(auto, folder)
    assert (again.study.sampler, again.study.pruner) == ("random", "asha")
    assert isinstance(open_study(again, folder).sampler, RepeatingRandomSampler)
    with pytest.raises(UserError, match=r"study\.sampler: random -> qmc"):
        open_study(as_begun(space_of(sampler="qmc", pruner="asha"), folder), folder)


def test_sobol_points_cover_a_range_more_evenly_than_lots() -> None:
    worst = {}
    for name in ("qmc", "random"):
        study = optuna.create_study(sampler=make_sampler(space_of(sampler=name)))
        rates = sorted(math.log10(study.ask({"training.lr": RATE}).params["training.lr"]) for _ in range(33))
        worst[name] = max(b - a for a, b in itertools.pairwise(rates))
    assert worst["qmc"] < 4 / 32 < worst["random"]


@pytest.mark.parametrize("begun", ["none", "cuda-graphs"])
def test_a_study_goes_on_compiling_as_it_was_begun(begun: str, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    former = search_space(experiment={"training": {"compile": begun, "precision": "fp32"}})
    open_study(former, folder)
    auto = search_space(experiment={"training": {"compile": "auto", "precision": "fp32"}})
    again = as_begun(auto, folder)
    assert again.base.training.compile == begun
    open_study(again, folder)
    assert again.base.hash == former.base.hash
    with pytest.raises(UserError, match=r"training\.compile: .* -> default"):
        open_study(as_begun(search_space(experiment={"training": {"compile": "default", "precision": "fp32"}}), folder), folder)


def test_so_does_one_that_another_folder_began_in_a_database(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/studies.db"
    former = search_space(experiment={"training": {"compile": "none", "precision": "fp32"}})
    open_study(former, StudyFolder(tmp_path / "one"), storage)
    auto = search_space(experiment={"training": {"compile": "auto", "precision": "fp32"}})
    other = StudyFolder(tmp_path / "other")
    other.path.mkdir()
    with contextlib.ExitStack() as stack:
        again, settled = settle(as_begun(auto, other), other, storage, stack, pytest.fail)
    assert (again.base.training.compile, settled) == ("none", "")
    open_study(again, other, storage)
