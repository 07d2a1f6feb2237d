"""A search that is killed, stopped and extended: nothing is run twice, nothing is lost, and MLflow says the same as the study."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Command
from in_process import without_ray
from optuna.trial import TrialState
from small_searches import agrees_with_mlflow, check_history, finished, running, slow_space, study_folder, trials_of

from guidino_tune.reproduce_trial import main as reproduce_trial
from guidino_tune.search import main as search

Start = Callable[..., Command]


def test_a_killed_search_goes_on_and_is_extended(
    home: Path, tmp_path: Path, demo: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = slow_space(tmp_path, demo, epochs=9, trials=5, min_epochs=3, pruner="asha")
    command = ("guidino_tune.search", str(space))
    first = start(*command)
    first.until(lambda: bool(finished(home, "small")) and bool(running(home, "small")))
    os.kill(first.process.pid, signal.SIGKILL)  # the driver only
    first.process.wait()
    # A trial's process may write its last epoch after the driver's death; that epoch is told again.
    before, left = finished(home, "small"), running(home, "small")
    assert before
    assert left
    params = {t.number: t.params for t in trials_of(home, "small")}

    assert search([str(space)]) == 0
    after = finished(home, "small")
    assert {n: after[n] for n in before} == before
    trials = trials_of(home, "small")
    assert len(trials) == 5
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    for number, drawn in params.items():  # the driver may have died between two parameters of a trial
        assert trials[number].params.items() >= drawn.items()
    check_history(home, "small", 9)
    agrees_with_mlflow(home, "small")
    assert (study_folder(home, "small").best).exists()

    # What two processes trained, one of which was killed, another one trains again to the last bit.
    capsys.readouterr()
    assert reproduce_trial(["small", str(left[0])]) == 0
    assert "identical bit by bit" in capsys.readouterr().out

    without_ray(monkeypatch)  # what follows is between the study and the driver
    assert search([str(space), "--trials", "7"]) == 0
    extended = finished(home, "small")
    assert {n: extended[n] for n in after} == after
    assert sorted(extended) == list(range(7))
    check_history(home, "small", 9)
    agrees_with_mlflow(home, "small")
    rates = [t.params["training.lr"] for t in trials_of(home, "small")]
    assert len(set(rates)) == 7


def unbounded(tmp_path: Path, demo: Path) -> str:
    """As many trials side by side as the cluster carries."""
    file = slow_space(tmp_path, demo, epochs=400, trials=100, pruner="none")
    space = yaml.safe_load(file.read_text())
    space["resources"] = {"executor": "actor", "cpus_per_worker": 1}
    file.write_text(yaml.safe_dump(space))
    return str(file)


def test_ray_train_trials_fill_a_cluster_to_the_last_cpu(home: Path, tmp_path: Path, demo: Path) -> None:
    """A third one, asked for ahead, would have processes of its own, and leave the second one's worker a hundredth of a CPU too little."""
    file = slow_space(tmp_path, demo, epochs=2, trials=3, pruner="none")
    space = yaml.safe_load(file.read_text())
    space["resources"] = {"executor": "train", "cpus_per_worker": 1}
    file.write_text(yaml.safe_dump(space))
    assert search([str(file)]) == 0
    trials = trials_of(home, "small")
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    begun = [t.datetime_start for t in trials if t.datetime_start]
    ended = [t.datetime_complete for t in trials if t.datetime_complete]
    assert begun[1] < ended[0]
    assert begun[2] > min(ended)


def test_a_dry_run_asks_the_cluster(tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search([unbounded(tmp_path, demo), "--dry-run"]) == 0
    assert f"the cluster at {os.environ['RAY_ADDRESS']}: 2 CPU; where no trial fits" in " ".join(capsys.readouterr().out.split())


def test_what_waits_for_a_place_does_not_begin_when_the_time_is_up(
    home: Path, tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search([unbounded(tmp_path, demo), "--time-budget", "10"]) == 0
    trials = trials_of(home, "small")
    left = [t for t in trials if t.state == TrialState.RUNNING]
    assert len(left) == 3  # two had a place, one did not
    assert not left[-1].intermediate_values
    assert "node" not in left[-1].user_attrs  # no process has taken it
    assert "The time budget is used up" in capsys.readouterr().out
