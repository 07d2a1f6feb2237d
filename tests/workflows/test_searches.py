"""How a search ends: out of time, with trials that have failed, by a callback that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState
from small_searches import agrees_with_mlflow, slow_space, trials_of

import guidino_tune as gt
from guidino_tune.search import main as search
from guidino_tune.training.reporter import EpochRecord


def test_a_time_budget_leaves_trials_to_the_next_run(home: Path, tmp_path: Path, demo: Path) -> None:
    space = slow_space(tmp_path, demo, epochs=300, trials=2, pruner="none")
    assert search([str(space), "--time-budget", "2"]) == 0
    states = [t.state for t in trials_of(home, "small")]
    assert TrialState.RUNNING in states
    assert not {TrialState.PRUNED, TrialState.FAIL} & set(states)
    agrees_with_mlflow(home, "small", interrupted=True)


def test_a_search_that_ends_early_says_so_each_time(
    home: Path, tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guidino_tune.study.stopping.since_best", lambda study, begun: max(0, len(begun) - 2))
    space = str(slow_space(tmp_path, demo, epochs=2, trials=9, pruner="none", stop=1))
    assert search([space]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "ended early" in line]
    assert "6 of 9 trials were not run, which saved about 12 epochs" in said[0]
    assert search([space]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "ended early" in line] == said
    assert len(trials_of(home, "small")) == 3
    agrees_with_mlflow(home, "small")


def test_a_trial_that_diverges_is_one_failure_among_others(home: Path, tmp_path: Path, demo: Path) -> None:
    space = yaml.safe_load(slow_space(tmp_path, demo, epochs=3, trials=3, pruner="none").read_text())
    space["experiment"]["training"]["grad_clip"] = None
    space["space"] = {"training.lr": {"type": "float", "low": 1e-4, "high": 1e38, "log": True}}
    space["first_trials"] = [{"training.lr": 1e38}, {"training.lr": 1e-3}, {"training.lr": 2e-3}]
    file = tmp_path / "diverging.yaml"
    file.write_text(yaml.safe_dump(space))
    assert search([str(file)]) == 0
    states = [t.state for t in trials_of(home, "small")]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    failed = trials_of(home, "small")[0]
    assert failed.user_attrs["failure"] == "diverged"
    assert "not finite" in failed.user_attrs["message"]
    agrees_with_mlflow(home, "small")


class Broken:
    """Fails with the first epoch."""

    def epoch_ended(self, trial: gt.TrialResult, record: EpochRecord) -> None:
        raise ZeroDivisionError("no axis")


def test_a_callback_that_fails_ends_the_search_which_then_goes_on(home: Path, tmp_path: Path, demo: Path) -> None:
    space = gt.load_space(str(slow_space(tmp_path, demo, epochs=3, trials=2, pruner="none")))
    with pytest.raises(gt.UserError, match=r"callback Broken.epoch_ended: ZeroDivisionError .* of trial 0: no axis"):
        gt.run_search(space, callbacks=[Broken()])
    assert [t.state for t in trials_of(home, "small")] == [TrialState.RUNNING]
    assert gt.run_search(space).exit_code == 0
    assert [(t.state, len(t.intermediate_values)) for t in trials_of(home, "small")] == [(TrialState.COMPLETE, 3)] * 2
