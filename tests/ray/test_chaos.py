"""A short run of the chaos harness, and the harness itself: what it is there to find, it finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chaos
import chaos_study
import chaos_truth as truth
import pytest
from optuna.trial import TrialState
from small_searches import study_folder, trials_of

from guidino_tune.space.space import read_space
from guidino_tune.study.promotion import DECISION
from guidino_tune.study.store import load_study, open_study
from guidino_tune.tracking import MLflowTracker, StudySnapshot
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.snapshots import TrialSnapshot
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import EpochRecord


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """None: the harness has a cluster of its own."""


def test_a_search_survives_the_death_of_everything_it_depends_on(tmp_path: Path) -> None:
    victims = ["driver", "raylet", "mlflow server"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "GUIDINO_TUNE_HOME")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, str(Path(chaos.__file__)), "--kills", "3", "--seed", "1", "--minutes", "4", "--output", str(tmp_path)]
    run = subprocess.run([*command, "--victims", *victims], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["discrepancies"] == []
    assert sorted(kill["victim"] for kill in found["kills"]) == sorted(victims)
    assert all(kill["recovery"] is not None for kill in found["kills"])


def test_the_same_seed_kills_the_same_in_the_same_order() -> None:
    kills = chaos.draw(60, list(chaos.VICTIMS), 0)
    assert kills == chaos.draw(60, list(chaos.VICTIMS), 0)
    assert kills != chaos.draw(60, list(chaos.VICTIMS), 1)
    assert {kill.victim for kill in kills[:60]} == set(chaos.VICTIMS)
    assert {kill.executor for kill in kills if kill.victim == "train worker"} == {"train"}
    assert {kill.executor for kill in kills if kill.victim == "trial actor"} == {"actor"}
    for number in (1, 4, 5):
        assert len(chaos.draw(number, list(chaos.VICTIMS), 3)) == number
    assert {kill.victim for kill in chaos.draw(5, list(chaos.VICTIMS), 3)} == set(chaos.VICTIMS)


def finished_study(home: Path, name: str, dice: tuple[float, ...] = (0.1, 0.3, 0.2)) -> TrialFolder:
    """A study of one trial, as a search leaves it; returns the trial's folder."""
    space = read_space(chaos_study.space(home / "demo", name, "actor", "listed"), source="chaos")
    folder = study_folder(home, name)
    study = open_study(space, folder)
    trial, place = study.ask(), folder.trial(0)
    trial.suggest_float("training.lr", 1e-4, 1e-1, log=True)
    place.write_history(EpochRecord(epoch, {"val_dice": value}, 1e9 + epoch) for epoch, value in enumerate(dice, 1))
    for epoch, value in enumerate(dice, 1):
        trial.report(value, epoch)
    study.tell(trial, max(dice))
    return place


def test_discrepancies_of_a_study_are_found(home: Path) -> None:
    place = finished_study(home, "sound")
    assert truth.study_problems(home, "sound") == []
    history = place.history()

    place.append_history(history[-1])
    assert any("[1, 2, 3, 3]" in text for text in truth.study_problems(home, "sound"))
    place.write_history([history[0], history[2]])
    assert any("[1, 3]" in text for text in truth.study_problems(home, "sound"))
    place.write_history([*history[:2], EpochRecord(3, {"val_dice": 0.25}, 1e9)])
    assert any("0.25" in text for text in truth.study_problems(home, "sound"))
    place.write_history(history)
    (place.path / "checkpoints" / "epoch-00003").mkdir(parents=True)
    assert truth.study_problems(home, "sound") == ["trial 0 has kept its checkpoints"]
    place.tidy()
    study = open_study(
        read_space(chaos_study.space(home / "demo", "sound", "actor", "listed"), source="chaos"), study_folder(home, "sound")
    )
    study.ask()
    assert truth.study_problems(home, "sound") == ["trial 1 is left running"]


def test_a_stop_that_no_rung_decided_is_found(home: Path) -> None:
    finished_study(home, "sound")
    study = load_study(study_folder(home, "sound"))
    for decision in ([3, True], [3, False], [1, True]):
        trial = study.ask()
        trial.report(0.1, 3)
        trial.set_user_attr(DECISION, decision)
        study.tell(trial, state=TrialState.PRUNED)
    assert [text.partition(" was")[0] for text in truth.decision_problems(home, "sound")] == ["trial 2", "trial 3"]


def test_two_studies_are_compared_bit_by_bit(home: Path) -> None:
    for name, last in (("first", 0.2), ("same", 0.2), ("other", 0.2 + 1e-16), ("shorter", None)):
        finished_study(home, name, (0.1, 0.3) if last is None else (0.1, 0.3, last))
    reference = truth.outcome(home, "first")
    drop = "trial 0, parameters"  # each of these studies has drawn its own

    def compared(name: str) -> list[str]:
        found: dict[str, Any] = truth.outcome(home, name)
        return [text.partition(":")[0] for text in truth.differences(reference, {**found, drop: reference[drop]})]

    assert compared("same") == []
    assert 0.2 + 1e-16 != 0.2
    assert compared("other") == ["trial 0, values", "trial 0, epoch 3"]
    assert compared("shorter") == ["trial 0, values", "trial 0, epoch 3"]


def test_an_epoch_that_is_trained_again_is_found(home: Path) -> None:
    place = finished_study(home, "sound")
    before = truth.saved(home, "sound")
    assert sorted(before) == [(0, 1), (0, 2), (0, 3)]
    assert truth.trained_again(before, truth.saved(home, "sound")) == []
    history = place.history()
    place.write_history([*history[:2], EpochRecord(3, history[2].metrics, history[2].time + 1)])  # the same values, at another time
    assert truth.trained_again(before, truth.saved(home, "sound")) == [(0, 3)]
    place.write_history(history[:1])
    assert truth.trained_again(before, truth.saved(home, "sound")) == [(0, 2), (0, 3)]


def test_discrepancies_of_mlflow_are_found(home: Path) -> None:
    place = finished_study(home, "sound")
    (trial,) = trials_of(home, "sound")
    uri = f"sqlite:///{home}/mlflow.db"
    tracker = MLflowTracker(uri, "guidino_tune", StudySnapshot("sound", id="1"), home / "ledger")
    tracker.start()
    tracker.update(TrialSnapshot(0, "U-Net", state="complete", history=tuple(place.history()), params=trial.params, searched=trial.params))
    assert tracker.close()

    def problems() -> list[str]:
        return truth.mlflow_problems(uri, home, "sound")

    assert problems() == []
    client = connect(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("guidino_tune").experiment_id], "tags.`guidino.kind` = 'trial'")
    client.log_metric(run.info.run_id, "val_dice", 0.3, step=2)  # a second time, a moment later
    assert problems() == ["MLflow, trial 0: val_dice is [(1, 0.1), (2, 0.3), (2, 0.3), (3, 0.2)], not [(1, 0.1), (2, 0.3), (3, 0.2)]"]
    client.set_terminated(run.info.run_id, "KILLED")
    assert any("KILLED below" in text for text in problems())
    client.create_run(run.info.experiment_id, tags=run.data.tags)
    assert problems() == ["MLflow has runs of the trials [0, 0], the study has 1 trials"]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    client.create_run(parent.info.experiment_id, tags=parent.data.tags)
    assert "parent runs: ['RUNNING', 'FINISHED']" in problems()
