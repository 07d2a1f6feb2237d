"""Constraints: what is not trained, what is not trained further, what the sampler learns of it, and what is the best."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from optuna.trial import TrialState
from test_objectives import TWO, Run, real_parameters, shown, space_of
from training_helpers import Listener, make_data, make_experiment, search_space

from guidino_tune import paths
from guidino_tune.errors import UserError
from guidino_tune.study.outcomes import UNTRAINED
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import ranking
from guidino_tune.training import costs
from guidino_tune.training.loop import TrainingRun
from guidino_tune.workflows.export import export_trial
from guidino_tune.workflows.finalists import finalists
from guidino_tune.workflows.progress import conclusions, leaderboard


def test_a_network_with_too_many_parameters_is_not_trained(tmp_path: Path) -> None:
    sizes = {w: real_parameters(search_space().experiment({"segmenter.base_width": w})) for w in (2, 4)}
    limit = (sizes[2] + sizes[4]) / 2
    space = space_of(constraints={"parameters": limit}, sampler="random", trials=12)
    driver = Run(tmp_path, space)
    trained = []
    while driver.driver.remaining and (asked := driver.driver.ask("a")):
        trained.append(asked["number"])
        for epoch in (1, 2, 3, 4):
            driver.epoch("a", asked["number"], epoch, 0.5)
        driver.driver.tell("a", crashed=False)
    trials = driver.study.get_trials()
    assert len(trained) == 12 < len(trials)  # only what is trained counts
    assert Tally(driver.study).done == 12
    for t in trials:
        width = t.params["segmenter.base_width"]
        assert t.constraints == {"parameters": pytest.approx(sizes[width] / limit - 1)}
        assert (t.state == TrialState.COMPLETE) == (width == 2) == (t.number in trained)
        assert width == 2 or not t.intermediate_values
    small = next(t for t in trials if t.params["segmenter.base_width"] == 4)
    assert small.user_attrs["message"].startswith(f"parameters {sizes[4]:,} above")
    assert driver.driver.given_up == ""


def test_a_limit_that_no_network_keeps_ends_the_search(tmp_path: Path) -> None:
    driver = Run(tmp_path, space_of(constraints={"parameters": 1000}, sampler="random", trials=12)).driver
    assert driver.ask("a") is None
    assert len(driver.study.trials) == UNTRAINED
    assert driver.remaining == 12
    for part in ("100 untrained configurations in a row", "above 1,000", "study.constraints"):
        assert part in driver.given_up


def test_a_trial_that_turns_out_too_slow_is_not_trained_further(tmp_path: Path) -> None:
    space = space_of(constraints={"latency": 0.05, "memory": 2.0})
    driver = Run(tmp_path, space)
    asked = driver.driver.ask("a")
    assert asked
    assert asked["measure"]
    assert driver.epoch("a", 0, 1, 0.5, latency=0.04, memory=2.0)  # just within
    assert driver.driver.ask("b")
    assert not driver.epoch("b", 1, 1, 0.99, latency=0.2, memory=1.0)
    driver.driver.tell("b", crashed=False)
    assert driver.driver.ask("c")
    assert not driver.epoch("c", 2, 1, 0.9, latency=0.01, memory=3.0)
    for epoch in (2, 3, 4):
        driver.epoch("a", 0, epoch, 0.6, latency=9.0)  # measured once: after a restart it would be measured again
    driver.driver.tell("a", crashed=False)
    alive = Run(tmp_path, space)  # the driver died before it could close trial 2
    assert [t.number for t in alive.driver.orphans] == [2]
    asked = alive.driver.ask("d")
    assert asked
    assert asked["number"] == 3  # not trained any further
    states = [t.state.name for t in alive.study.get_trials()]
    assert states == ["COMPLETE", "PRUNED", "PRUNED", "RUNNING"]
    assert [t.user_attrs.get("message") for t in alive.study.get_trials()[1:3]] == ["latency 0.2 above 0.05", "memory 3 above 2"]
    assert alive.driver.remaining == space.study.trials - 3
    assert not Run(tmp_path / "other", space_of(TWO)).driver.ask("a")["measure"]  # type: ignore[index]


def test_tpe_learns_where_trials_are_feasible(tmp_path: Path) -> None:
    """The rate is best where it is forbidden, and most of it is; random search would find every fifth trial feasible."""
    shares: dict[str, list[float]] = {"tpe": [], "random": []}
    for sampler, seed in itertools.product(shares, range(4)):
        space = space_of(constraints={"latency": 1.0}, sampler=sampler, trials=60, startup_trials=10, seed=seed)
        driver = Run(tmp_path / f"{sampler}{seed}", space)
        for _ in range(60):
            asked = driver.driver.ask("a")
            assert asked
            rate = driver.study.get_trials(deepcopy=False)[-1].params["training.lr"]
            for epoch in (1, 2, 3, 4):
                if not driver.epoch("a", asked["number"], epoch, 100 * rate, latency=rate / 2.5e-4):
                    break
            driver.driver.tell("a", crashed=False)
        shares[sampler].append(sum(t.state == TrialState.COMPLETE for t in driver.study.trials[20:]) / 40)
        best = ranking(driver.study)[0]
        assert best.params["training.lr"] <= 2.5e-4
        assert best.value == max(t.value for t in driver.study.trials if t.state == TrialState.COMPLETE)
    assert np.mean(shares["random"]) < 0.35
    assert np.mean(shares["tpe"]) > np.mean(shares["random"]) + 0.12, shares


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_data(tmp_path_factory.mktemp("data"))


def test_a_trial_measures_itself_and_nothing_else_changes(data: Any, tmp_path: Path) -> None:
    weights, history = [], []
    for measure in (False, True):
        run = TrainingRun(make_experiment(epochs=2), data, Listener(tmp_path / str(measure)), measure=measure)
        run.run()
        weights.append(run.model.trained_state())
        history.append([r.metrics for r in run.history])
    assert {"latency", "memory"} <= history[1][0].keys()
    assert not {"latency", "memory"} & {*history[1][1], *history[0][0]}
    for plain, measured in zip(*history, strict=True):
        names = plain.keys() - {"epoch_seconds", "images_per_second"}
        assert {n: plain[n] for n in names} == {n: measured[n] for n in names}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert 0 < history[1][0]["latency"] < 1
    assert 0.05 < history[1][0]["memory"] < 20


def test_the_peak_of_what_was_before_is_forgotten() -> None:
    device = torch.device("cpu")
    big = torch.ones(100_000_000)  # 400 MB
    with_big = costs.peak_gigabytes(device)
    del big
    costs.forget_peak(device)
    before = costs.peak_gigabytes(device)
    if with_big - before < 0.3:
        pytest.skip("this system's processes cannot forget their peak")
    again = torch.ones(50_000_000)
    assert costs.peak_gigabytes(device) - before == pytest.approx(again.numel() * 4 / 1e9, abs=0.05)


def test_the_best_trial_keeps_to_the_constraints(home: Path) -> None:
    space = space_of(constraints={"latency": 0.05})
    driver = Run(paths.studies() / "small", space)
    driver.trial(0.99, latency=0.2)
    assert not driver.folder.best.exists()
    with pytest.raises(UserError, match="within the constraints") as caught:
        export_trial("small", None)
    assert "latency 0.2 above 0.05" in str(caught.value)
    assert "no trial that ran its whole budget keeps" in conclusions(driver.study, space)[0]
    driver.trial(0.6, latency=0.05)
    driver.trial(0.7, latency=0.01)
    assert yaml.safe_load(driver.folder.best.read_text())["provenance"]["trial"] == 2
    assert "within the constraints" in export_trial("small", None)[1]
    assert "beyond latency 0.2 above 0.05" in export_trial("small", 0)[1]
    assert driver.tracker.trials[0].state == "running"
    assert {t.number: t.reason for t in driver.tracker.trials}[0] == "latency 0.2 above 0.05"
    table = shown(leaderboard(driver.study, space)[0])
    assert "beyond latency 0.2 above 0.05" in table
    assert conclusions(driver.study, space) == [
        "1 trials broke a constraint and were not trained, or no further (trial 0: latency 0.2 above 0.05); the best trial keeps to all of "
        "them."
    ]
    assert [c.name for c in finalists(driver.study, space, top=5, against=())] == ["trial 2", "trial 1"]
