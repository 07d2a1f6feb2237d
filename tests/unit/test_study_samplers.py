"""What a study draws next follows from its seed, the trial's number and the results so far, however often it was closed in between."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy import stats
from space_helpers import GUIDE, search_space

from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.driver import Driver
from guidino_tune.study.samplers import PriorSampler, TPESampler
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.study.trials import orphans
from guidino_tune.training.reporter import EpochRecord

TRIALS = 24


def space_of(sampler: str, **study: Any) -> Space:
    """A space with a condition, some first trials of which one is incomplete, and TPE that models from its seventh trial on."""
    return search_space(
        experiment={"guide": GUIDE},
        space={
            "guide.lora.rank": {"choices": [0, 2, 4]},
            "guide.lora.alpha": {"type": "float", "low": 1, "high": 64, "log": True, "when": {"guide.lora.rank": {"gt": 0}}},
        },
        study={"sampler": sampler, "startup_trials": 6, "trials": TRIALS, **study},
    )


def score(values: dict[str, Any], epoch: int) -> float:
    """A made-up result, best at a learning rate of 1e-3 and with adapters."""
    return -abs(np.log10(values["training.lr"]) + 3) + 0.1 * values["guide.lora.rank"] + 0.01 * epoch


def run(space: Space, folder: StudyFolder, trials: int, *, stop: str = "") -> optuna.Study:
    """Trials one after the other, as with ``resources.concurrent=1``; ``stop`` leaves one more as a killed driver would."""
    study = open_study(space, folder)
    waiting = orphans(study, space)
    for _ in range(trials):
        trial = optuna.Trial(study, waiting.pop()._trial_id) if waiting else study.ask()
        values = suggest(space, trial)
        for epoch in range(1, 5):
            trial.report(score(values, epoch), epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, score(values, 4))
    if stop:
        last = study.ask()
        if stop == "half drawn":
            last.suggest_float("training.lr", 1e-4, 1e-2, log=True)
        elif stop == "drawn":
            suggest(space, last)
    return study


def content(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.params, t.intermediate_values, t.value) for t in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("sampler", ["auto", "tpe", "prior", "random"])
@pytest.mark.parametrize("stop", ["", "asked", "half drawn", "drawn"])
def test_a_study_that_was_interrupted_goes_on_as_if_it_had_not_been(sampler: str, stop: str, tmp_path: Path) -> None:
    space = space_of(sampler)
    whole = run(space, StudyFolder(tmp_path / "whole"), TRIALS)
    folder = StudyFolder(tmp_path / "parts")
    for trials in (3, 4, 1, 8):
        run(space, folder, trials, stop=stop)
    parts = run(space, folder, TRIALS - 16)
    assert content(parts) == content(whole)
    states = {t.state for t in whole.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}  # the pruner took part in it
    assert len({t.params["training.lr"] for t in whole.trials}) == TRIALS


def test_tpe_looks_at_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above could not tell whether they matter."""
    space = space_of("tpe", pruner="none")
    first = run(space, StudyFolder(tmp_path / "a"), TRIALS).trials
    monkeypatch.setattr(sys.modules[__name__], "score", lambda values, epoch, right=score: -right(values, -epoch))
    second = run(space, StudyFolder(tmp_path / "b"), TRIALS).trials
    equal = [a.params == b.params for a, b in zip(first, second, strict=True)]
    assert equal[:6] == [True] * 6
    assert sum(equal[8:]) <= 2  # a draw may come from the prior


def test_other_seeds_and_trials_draw_independent_values(tmp_path: Path) -> None:
    """Rates are uniform in their logarithm, and those of neighbouring seeds, and of one trial and the next, are not related."""
    logs = []
    for seed in (3, 4, 2**31 + 3):
        space = space_of("random", seed=seed, pruner="none")
        study = run(space, StudyFolder(tmp_path / str(seed)), 120)
        logs.append(np.log10([t.params["training.lr"] for t in study.trials[2:]]))
    for values in logs:
        counts = np.histogram(values, 4, (-4, -2))[0]
        assert ((counts - 29.5) ** 2 / 29.5).sum() < 16.3, counts  # chi squared of 3 degrees of freedom: one in a thousand
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.31
    assert abs(np.corrcoef(logs[0], logs[1])[0, 1]) < 0.31
    assert abs(np.corrcoef(logs[0], logs[2])[0, 1]) < 0.31


DRAW = """
import sys; sys.path.insert(0, {here!r})
from pathlib import Path
from test_study_samplers import *
for row in content(run(space_of("tpe"), StudyFolder(Path(sys.argv[1])), 16)):
    print(sorted(row[2].items()))
"""


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    """Whatever Python's own hash of a text is: it differs between processes, and Optuna keeps its parameters in sets."""
    code = DRAW.format(here=str(Path(__file__).parent))
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")], env={"PYTHONHASHSEED": "1", "PATH": ""}, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert os.environ.get("PYTHONHASHSEED") != "1"
    here = [str(sorted(row[2].items())) for row in content(run(space_of("tpe"), StudyFolder(tmp_path / "here"), 16))]
    assert printed.splitlines() == here
    assert len(here) == 16


def lives(space: Space, path: Path, dies: random.Random | None) -> optuna.Study:
    """One trial after another through the driver; a driver dies at random between any two of its calls, and the next one takes over."""
    while True:
        folder = StudyFolder(path)
        study = open_study(space, folder)
        driver = Driver(study, space, folder, lambda *_: None, {"workers": 1, "executor": "actor"})
        if not driver.remaining:
            return study
        with contextlib.suppress(InterruptedError):
            for _ in range(driver.remaining):
                _live(driver, dies)


def _live(driver: Driver, dies: random.Random | None) -> None:
    def go_on() -> None:
        if dies and dies.random() < 0.3:
            raise InterruptedError

    asked = driver.ask("trial")
    assert asked
    values = driver.study.get_trials(deepcopy=False)[asked["number"]].params
    go_on()
    for epoch in range(min(asked["reported"] + 1, 4), 5):  # a finished trial tells its last epoch once more
        answer = driver.report("trial", [EpochRecord(epoch, {"val_dice": score(values, epoch)}, 0.0)])
        go_on()
        if not answer:
            break
    driver.tell("trial", crashed=False)
    go_on()


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
def test_a_driver_that_dies_anywhere_changes_nothing(sampler: str, tmp_path: Path) -> None:
    """Between asking and training, between a comparison and its consequence, between two trials: the study comes out the same."""
    space = space_of(sampler, reduction_factor=2)
    whole = lives(space, tmp_path / "whole", None)
    assert {t.state for t in whole.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert content(lives(space, tmp_path / "died", random.Random(0))) == content(whole)


def failing(sampler: str, path: Path, kind: str) -> float:
    """Share of the second half of 60 trials that fail, where three rates of ten do, and the best rate is the highest that does not."""
    space = space_of(sampler, trials=60, startup_trials=10, pruner="none")
    study = open_study(space, StudyFolder(path))
    failed = []
    for _ in range(60):
        trial = study.ask()
        rate = suggest(space, trial)["training.lr"]
        failed.append(rate > 10**-2.6)
        if failed[-1]:
            trial.set_user_attr("failure", kind)
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, np.log10(rate))
    assert {t.state for t in study.trials if t.params["training.lr"] > 10**-2.6} == {TrialState.FAIL}
    return float(np.mean(failed[30:]))


def test_tpe_learns_from_trials_that_diverged_and_not_from_those_that_a_machine_lost(tmp_path: Path) -> None:
    diverged, lost = failing("tpe", tmp_path / "a", "diverged"), failing("tpe", tmp_path / "b", "crashed")
    assert diverged < lost / 2, (diverged, lost)


def test_failures_are_bad_trials_once_there_are_results() -> None:
    study = optuna.create_study(direction="maximize")
    sampler = TPESampler(space_of("tpe", startup_trials=3), 0)
    seen = []
    for kind in ("diverged", "out-of-memory", "", "bug", "", "", "preempted"):
        trial = study.ask()
        trial.set_user_attr("failure", kind)
        study.tell(trial, *((0.5,) if not kind else ()), state=TrialState.FAIL if kind else TrialState.COMPLETE)
        good, bad = sampler.split(study, -1)
        seen.append(([t.number for t in good], [t.number for t in bad]))
    assert seen == [([], [])] * 5 + [([2], [0, 1, 4, 5])] * 2


def test_a_trial_whose_driver_died_half_way_through_its_values_is_seen_with_all_of_them_later(tmp_path: Path) -> None:
    space = space_of("tpe", startup_trials=3, pruner="none")
    study = run(space, StudyFolder(tmp_path), 8)
    half = study.ask()
    half.suggest_float("training.lr", 1e-4, 1e-2, log=True)
    suggest(space, study.ask())  # modelled with the half of it
    suggest(space, half)
    sampler, seen = study.sampler, study.get_trials(deepcopy=False)[half.number]
    assert isinstance(sampler, TPESampler)
    assert seen in sampler.split(study, -1)[1]
    np.testing.assert_array_equal(sampler._row(seen), TPESampler(space, 0)._row(seen))


def test_a_prior_draws_near_the_first_trials_and_fades() -> None:
    """Five kernels around the first trial and one over all; of proposal n one in 1 + n/20; without a result the others are lots."""
    space = search_space(study={"sampler": "prior"}, first_trials=[{"training.lr": 1e-3}])
    near = {0: 0, 20: 0, 380: 0}
    for seed in range(300):
        sampler = PriorSampler(space, seed)
        study = optuna.create_study(sampler=sampler)
        for number in near:
            frozen = optuna.trial.FrozenTrial(number, TrialState.RUNNING, None, None, None, {}, {}, {}, {}, {}, number)
            values = sampler.propose(study, frozen)
            near[number] += bool(values) and abs(np.log10(values["training.lr"]) + 3) < 0.3
    # The range has two decades; a kernel is a normal whose width is at least a sixth of it.
    width = 2 * max(0.2 * 5 ** (-1 / (len(space.parameters) + 4)), 1 / 6)
    whole = 5 / 6 * (2 * stats.norm.cdf(0.3 / width) - 1) + 1 / 6 * 0.3
    assert [count / 300 for count in near.values()] == pytest.approx([whole, whole / 2, whole / 20], abs=0.09)
