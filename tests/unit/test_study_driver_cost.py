"""What keeps a driver fast with thousands of trials: a sampler with a bound, and counts that are kept along."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from test_study_driver import Run, result
from training_helpers import search_space

from guidino_tune.study.samplers import BEST, LATEST, RUNNING, RecentTPESampler, _seeds
from guidino_tune.study.store import StudyFolder, load_study, open_study
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import finished, ranking

OPTIONS: dict[str, Any] = {"seed": 3, "n_startup_trials": 5, "multivariate": True, "group": True, "constant_liar": True}


def draw(trial: optuna.Trial) -> dict[str, Any]:
    """Two branches, as a space with conditions has them."""
    values: dict[str, Any] = {"kind": trial.suggest_categorical("kind", ["a", "b"]), "lr": trial.suggest_float("lr", 1e-5, 1, log=True)}
    if values["kind"] == "b":
        values["rank"] = trial.suggest_int("rank", 1, 64, log=True)
    return values


def search(sampler: optuna.samplers.BaseSampler, trials: int, complete: int = 2) -> optuna.Study:
    """Four trials side by side; ``complete`` in three run to their end, the others are stopped early, and one in seven fails."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    running: list[optuna.Trial] = []
    for number in range(trials):
        running.append(study.ask())
        values = draw(running[-1])
        running[-1].report(-abs(np.log10(values["lr"]) + 3), 1 + number % 4)
        if len(running) == 4:
            trial = running.pop(number % 4)
            if trial.number % 7 == 6:
                study.tell(trial, state=TrialState.FAIL)
            elif trial.number % 3 >= complete and trial.number > 9:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, -abs(np.log10(trial.params["lr"]) + 3) - trial.params.get("rank", 30) / 100)
    return study


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class StockSampler(optuna.samplers.TPESampler):
    """Optuna's own, whose random numbers start anew for every draw as ours do."""

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        self._rng.rng.seed(_seeds(OPTIONS["seed"], trial, ""))
        return super().sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        for generator in (self._rng, self._random_sampler._rng):
            generator.rng.seed(_seeds(OPTIONS["seed"], trial, param_name))
        return super().sample_independent(study, trial, param_name, param_distribution)


def test_up_to_its_bound_it_draws_as_tpe_does() -> None:
    ours, stock = (search(sampler(**OPTIONS), 60) for sampler in (RecentTPESampler, StockSampler))
    assert [t.params for t in ours.trials] == [t.params for t in stock.trials]


@pytest.mark.parametrize("complete", [0, 2], ids=["few complete", "most complete"])
def test_beyond_it_the_good_trials_are_those_of_tpe(complete: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.samplers._tpe import sampler as tpe

    splits: list[tuple[list[int], list[int]]] = []
    real = tpe._split_trials

    def split(study: optuna.Study, trials: list[FrozenTrial], n_below: int) -> Any:
        below, above = real(study, trials, n_below)
        splits.append(([t.number for t in below], [t.number for t in above]))
        return below, above

    study = search(optuna.samplers.RandomSampler(seed=1), 420, complete)
    monkeypatch.setattr(tpe, "_split_trials", split)
    for sampler in (RecentTPESampler(**OPTIONS), optuna.samplers.TPESampler(**OPTIONS)):
        study.sampler = sampler
        draw(study.ask())
        study.tell(len(study.trials) - 1, state=TrialState.FAIL)
    ours, stock = splits[0], splits[-1]
    assert ours[0] == stock[0]
    assert len(ours[0]) == BEST
    assert set(ours[1]) < set(stock[1])
    assert LATEST - BEST <= len(ours[1]) <= LATEST + 5
    assert ours[1] == sorted(ours[1])
    assert {t.number for t in study.trials if t.state == TrialState.RUNNING} <= set(ours[1])


def test_of_many_running_trials_the_newest_are_modelled_and_up_to_the_bound_all_as_tpe_does() -> None:
    draws: dict[int, list[Any]] = {}
    for running in (RUNNING, 3 * RUNNING):
        for sampler in (RecentTPESampler(**OPTIONS), StockSampler(**OPTIONS)):
            study = search(optuna.samplers.RandomSampler(seed=1), 30)
            more = running - sum(t.state == TrialState.RUNNING for t in study.trials)
            for _ in range(more):
                draw(study.ask())
            study.sampler = sampler
            draws.setdefault(running, []).append(draw(study.ask()))
        modelled = RecentTPESampler(**OPTIONS)._modelled(study, study.trials[-1])
        shown = [t.number for t in modelled if t.state == TrialState.RUNNING]
        assert shown == [t.number for t in study.trials if t.state == TrialState.RUNNING][-RUNNING:]
    assert draws[RUNNING][0] == draws[RUNNING][1]


def test_a_parameter_that_only_old_trials_had_is_still_modelled() -> None:
    """Everything a resumed study ever drew belongs to its space, not only what the latest trials have."""
    study = optuna.create_study(direction="maximize")
    for number in range(40):
        kind = "b" if number < 10 else "a"
        distributions: dict[str, Any] = {
            "kind": optuna.distributions.CategoricalDistribution(["a", "b"]),
            "lr": optuna.distributions.FloatDistribution(1e-5, 1, log=True),
        }
        params: dict[str, Any] = {"kind": kind, "lr": 1e-3}
        if kind == "b":
            distributions["rank"], params["rank"] = optuna.distributions.IntDistribution(1, 64, log=True), 8
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=-number))
    sampler = RecentTPESampler(latest=12, **OPTIONS)
    trial = study.ask()
    assert set(sampler.infer_relative_search_space(study, study.trials[trial.number])) == {"kind", "lr", "rank"}


def test_a_tally_agrees_with_the_study_at_any_time(tmp_path: Path) -> None:
    space = search_space()
    study = open_study(space, StudyFolder(tmp_path))
    tally = Tally(study)
    rng = np.random.default_rng(0)
    running: list[optuna.Trial] = []
    for _ in range(60):
        if len(running) < 3:
            running.append(study.ask())
            changed = running[-1]
        else:
            changed = running.pop(rng.integers(3))
            value = round(float(rng.random()), 1)  # ties
            changed.report(value, int(rng.integers(1, 5)))
            state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[rng.integers(3)]
            if state == TrialState.FAIL:
                changed.set_user_attr("failure", str(rng.choice(["bug", "diverged"])))
            study.tell(changed, value if state == TrialState.COMPLETE else None, state=state)
        trial = study.get_trials()[changed.number]
        assert tally.take(trial)
        assert not tally.take(trial)
        for seen in (tally, Tally(study)):
            trials = study.get_trials()
            assert {s: n for s, n in seen.states.items() if n} == {s: n for s in TrialState if (n := sum(t.state == s for t in trials))}
            assert seen.done == len(finished(study))
            assert seen.epochs == sum(max(t.intermediate_values, default=0) for t in trials if t.state.is_finished())
            assert seen.best == next(iter(ranking(study)), None)


def test_nothing_waits_in_memory_and_each_decision_is_brought_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed between any two calls loses no line; a machine that loses power loses no trial and no result."""
    synced: list[int] = []
    driver = Run(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: synced.append(driver.folder.journal.stat().st_size))
    driver.driver.ask("a")
    assert synced == [driver.folder.journal.stat().st_size]
    for epoch in (1, 2, 3, 4):
        driver.driver.report("a", result(epoch, 0.5))
        assert load_study(driver.folder).trials[0].intermediate_values == dict.fromkeys(range(1, epoch + 1), 0.5)
    driver.driver.tell("a", crashed=False)
    assert synced[1:] == [driver.folder.journal.stat().st_size]
